//! SPIs and keys of a tunnel's two SAs, as arguments: keys come from files.

use std::path::PathBuf;

use clap::Args;

use super::{Problems, SaTable, Scalar, key_from};

#[derive(Args)]
pub(super) struct SaKeys {
    /// SPI of the SA that the peer sends with.
    #[arg(long)]
    inbound_spi: Option<String>,
    /// File with its encryption key (mode 0600).
    #[arg(long, requires = "inbound_spi")]
    inbound_key_file: Option<PathBuf>,
    /// File with its authentication key.
    #[arg(long, requires = "inbound_spi")]
    inbound_authentication_key_file: Option<PathBuf>,
    /// SPI of the SA that we send with.
    #[arg(long)]
    outbound_spi: Option<String>,
    /// File with its encryption key (mode 0600).
    #[arg(long, requires = "outbound_spi")]
    outbound_key_file: Option<PathBuf>,
    /// File with its authentication key.
    #[arg(long, requires = "outbound_spi")]
    outbound_authentication_key_file: Option<PathBuf>,
    /// Nobody ever used these keys, on any host: begin a record of their numbers. Without, they go on above theirs.
    #[arg(long)]
    pub(super) fresh_keys: bool,
}

impl SaKeys {
    /// The SA that the peer sends with.
    pub(super) fn inbound(&self) -> Result<Option<SaTable>, Problems> {
        let authentication = &self.inbound_authentication_key_file;
        self.table(&self.inbound_spi, &self.inbound_key_file, authentication)
    }

    /// The SA that we send with.
    pub(super) fn outbound(&self) -> Result<Option<SaTable>, Problems> {
        let authentication = &self.outbound_authentication_key_file;
        self.table(&self.outbound_spi, &self.outbound_key_file, authentication)
    }

    fn table(
        &self,
        spi: &Option<String>,
        key: &Option<PathBuf>,
        authentication: &Option<PathBuf>,
    ) -> Result<Option<SaTable>, Problems> {
        let Some(spi) = spi else { return Ok(None) };
        let read = |path: &Option<PathBuf>| match path {
            None => Ok(None),
            Some(path) => {
                key_from(path).map(Some).map_err(|error| Problems::one(path.display().to_string(), error))
            }
        };
        Ok(Some(SaTable {
            spi: Scalar(spi.clone()),
            encryption_key: read(key)?,
            authentication_key: read(authentication)?,
            fresh_key: self.fresh_keys.then_some(true),
            last_sequence: None,
        }))
    }
}
