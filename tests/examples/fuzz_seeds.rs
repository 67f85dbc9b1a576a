//! Writes the first inputs of a fuzz target into a directory: `fuzz_seeds TARGET DIRECTORY`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(target), Some(directory)) = (arguments.next(), arguments.next()) else {
        return Err(std::io::Error::other("usage: fuzz_seeds TARGET DIRECTORY"));
    };
    std::fs::create_dir_all(&directory)?;
    for (number, seed) in adit_tests::fuzzing::seeds::seeds(&target).iter().enumerate() {
        std::fs::write(Path::new(&directory).join(format!("seed-{number:04}")), seed)?;
    }
    Ok(())
}
