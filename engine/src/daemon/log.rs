//! Where the log goes: to whoever reads standard error, without waiting for them.
//!
//! A pipe that nobody empties would hold up the thread that logs, and with it the control socket or the links. What
//! finds no room is lost instead, and counted: the next line that finds some says how many were.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing_subscriber::fmt::MakeWriter;

/// What a pipe that has any room at all takes without waiting (pipe(7): PIPE_BUF).
const ATOMIC: usize = 4096;

/// Writes lines to `W`, or loses them.
pub struct Lossy<W> {
    to: W,
    json: bool,
    lost: Mutex<u64>,
}

impl<W> Lossy<W> {
    /// `json`: what is said of lost lines is an object, as the lines are.
    pub fn new(to: W, json: bool) -> Self {
        Self { to, json, lost: Mutex::new(0) }
    }
}

impl<'a, W: AsFd + 'a> MakeWriter<'a> for Lossy<W>
where
    &'a W: Write,
{
    type Writer = Line<'a, W>;

    fn make_writer(&'a self) -> Line<'a, W> {
        Line(self)
    }
}

/// One line of the log: a single call of `write`, as the formatter makes it.
pub struct Line<'a, W>(&'a Lossy<W>);

impl<'a, W: AsFd> Write for Line<'a, W>
where
    &'a W: Write,
{
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Self(Lossy { to, json, lost }) = *self;
        // Held while writing: what there is room for is this line's.
        let mut lost = lost.lock().unwrap_or_else(PoisonError::into_inner);
        if *lost > 0 && has_room(to) {
            let count = *lost;
            match json {
                true => writeln!(
                    &*to,
                    r#"{{"level":"WARN","fields":{{"message":"the log was not read","lost_lines":{count}}}}}"#
                )?,
                false => writeln!(&*to, " WARN the log was not read: {count} lines are lost")?,
            }
            *lost = 0;
        }
        for piece in line.chunks(ATOMIC) {
            if !has_room(to) {
                *lost += 1;
                break;
            }
            (&*to).write_all(piece)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn has_room(to: &impl AsFd) -> bool {
    let mut ends = [PollFd::new(to, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // Whoever has gone away is told so by the write.
    poll(&mut ends, Some(&now)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    fn full_pipe() -> (File, File) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (reader, mut writer) = (File::from(reader), File::from(writer));
        while has_room(&writer) {
            writer.write_all(&[b'.'; ATOMIC]).unwrap();
        }
        (reader, writer)
    }

    #[test]
    fn what_finds_no_room_is_lost_and_counted() {
        for (json, said) in [
            (false, " WARN the log was not read: 3 lines are lost\nback\n"),
            (
                true,
                "{\"level\":\"WARN\",\"fields\":{\"message\":\"the log was not read\",\"lost_lines\":3}}\nback\n",
            ),
        ] {
            let (mut reader, writer) = full_pipe();
            let log = Lossy::new(writer, json);
            for line in ["one\n", "two\n", &"long ".repeat(10_000)] {
                log.make_writer().write_all(line.as_bytes()).unwrap();
            }
            let mut room = vec![0; 1 << 20];
            let filled = reader.read(&mut room).unwrap();
            assert!(room[..filled].iter().all(|byte| *byte == b'.'));
            log.make_writer().write_all(b"back\n").unwrap();
            drop(log);
            let mut rest = String::new();
            reader.read_to_string(&mut rest).unwrap();
            assert_eq!(rest.trim_start_matches('.'), said);
        }
    }

    #[test]
    fn who_reads_gets_every_line_whole() {
        let (mut reader, writer) = rustix::pipe::pipe().map(|(r, w)| (File::from(r), File::from(w))).unwrap();
        let log = Lossy::new(writer, false);
        let long = "x".repeat(3 * ATOMIC + 1) + "\n";
        for line in ["one\n", &long, "two\n"] {
            log.make_writer().write_all(line.as_bytes()).unwrap();
        }
        drop(log);
        let mut all = String::new();
        reader.read_to_string(&mut all).unwrap();
        assert_eq!(all, format!("one\n{long}two\n"));
    }

    #[test]
    fn a_reader_that_has_gone_is_an_error_and_no_wait() {
        let (reader, writer) = full_pipe();
        drop(reader);
        assert!(Lossy::new(writer, false).make_writer().write(b"line\n").is_err());
    }
}
