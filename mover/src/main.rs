//! The program in a mover pod: reads, counts, scans or writes the volume mounted there, in frames.

use std::{
    io::{self, BufWriter, Write},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use ocopea_mover::{
    Class, Fault, hold, open_root, read,
    wire::{FrameReader, FrameWriter, Job, Message},
    write,
};

const USAGE: &str = "usage: ocopea-mover read|count|scan|write --root DIRECTORY
       ocopea-mover hold [--idle SECONDS] [--deadline SECONDS]
       ocopea-mover version";

enum Wish {
    Work(Job, String),
    Hold(Duration, Duration),
    Version,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    match parse(&arguments) {
        Some(Wish::Work(job, root)) => work(job, Path::new(&root)),
        Some(Wish::Hold(idle, deadline)) => {
            hold(idle, deadline);
            ExitCode::SUCCESS
        }
        Some(Wish::Version) => say(&mut io::stdout(), env!("CARGO_PKG_VERSION"), ExitCode::SUCCESS),
        None => say(&mut io::stderr(), USAGE, ExitCode::from(2)),
    }
}

fn say(to: &mut impl Write, text: &str, code: ExitCode) -> ExitCode {
    // Nobody can be told that nobody listens.
    let _ = writeln!(to, "{text}");
    code
}

fn parse(arguments: &[String]) -> Option<Wish> {
    let (verb, options) = arguments.split_first()?;
    let option = |name: &str| options.iter().position(|o| o == name).and_then(|at| options.get(at + 1));
    let seconds = |name: &str, default: u64| match option(name) {
        Some(text) => text.parse().ok().map(Duration::from_secs),
        None => Some(Duration::from_secs(default)),
    };
    let job = match verb.as_str() {
        "read" => Job::Read,
        "count" => Job::Count,
        "scan" => Job::Scan,
        "write" => Job::Write,
        "hold" => return Some(Wish::Hold(seconds("--idle", 60)?, seconds("--deadline", 12 * 3600)?)),
        "version" => return Some(Wish::Version),
        _ => return None,
    };
    Some(Wish::Work(job, option("--root")?.clone()))
}

fn work(job: Job, root: &Path) -> ExitCode {
    let mut out = FrameWriter::new(BufWriter::with_capacity(256 << 10, io::stdout().lock()));
    let Err(fault) = run(job, root, &mut out) else { return ExitCode::SUCCESS };
    // Told twice: in the stream for the agent, on standard error for people who look into the pod.
    let _ = out.send(&Message::Fault(fault.clone())).and_then(|()| out.flush());
    say(&mut io::stderr(), &format!("error: {fault}"), ExitCode::FAILURE)
}

fn run<W: Write>(job: Job, root: &Path, out: &mut FrameWriter<W>) -> Result<(), Fault> {
    out.send(&Message::Hello { job, trusted: sees_trusted(), entries: 0, data: 0 })?;
    out.flush()?;
    let open = || {
        open_root(root).map_err(|error| {
            Fault::new(Class::Unreadable, format!("the volume at {} can't be opened: {error}", root.display()))
        })
    };
    let totals = match job {
        Job::Write => {
            write::write(open()?, &mut FrameReader::new(io::stdin().lock()), out)?;
            // What arrived is what can be read there, not what was meant to be written.
            read::walk(open()?, Job::Count, out)?
        }
        job => read::walk(open()?, job, out)?,
    };
    out.send(&Message::End(totals))?;
    out.flush()
}

/// Whether the system shows us attributes `trusted.*`: it hides them from processes without CAP_SYS_ADMIN.
fn sees_trusted() -> bool {
    const SYS_ADMIN: u32 = 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> SYS_ADMIN & 1 == 1)
}
