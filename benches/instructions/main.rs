//! Counts the instructions of each stage of a request, and compares them with `benches/baseline.txt`.
//!
//! On a shared machine times vary and instruction counts do not. Callgrind counts all cases in one run; the counts of two
//! runs differ by a small fraction. gungraun (formerly iai-callgrind) requires a second installed program of exactly the
//! same version, and compares with callgrind's own output of an earlier run, not with a readable text that can be committed.
//!
//! - `cargo bench --bench instructions` compares,
//! - `cargo bench --bench instructions -- renew` replaces the baseline with new counts.

#![allow(unreachable_pub, reason = "a bench program has no public side")]

mod baseline;
mod callgrind;
mod cases;
mod counter;
mod harness;
mod http2_session;

use std::{env, process::ExitCode};

use self::{
    baseline::Baseline,
    callgrind::{CHILD_ARGUMENT, processor},
    counter::Counter,
};

fn main() -> ExitCode {
    // Cargo adds --bench.
    let arguments: Vec<_> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => compare(),
        ["renew"] => renew(),
        [CHILD_ARGUMENT] => run_counted(),
        _ => Err("usage: cargo bench --bench instructions [-- renew]".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn compare() -> Result<(), String> {
    let (baseline, version) = (Baseline::read()?, callgrind::valgrind_version()?);
    baseline.compare(&callgrind::run()?, &version)
}

fn renew() -> Result<(), String> {
    let (version, counted) = (callgrind::valgrind_version()?, callgrind::run()?);
    if counted.processor != callgrind::PROCESSOR {
        return Err(format!("the baseline is for {}", callgrind::PROCESSOR));
    }
    Baseline::write(&counted, &version)
}

/// The counted run: counts all cases and prints a line for each.
fn run_counted() -> Result<(), String> {
    let mut counter = Counter::default();
    cases::count_all(&mut counter).map_err(|error| error.to_string())?;
    println!("{}", processor());
    for (name, rounds) in counter.cases() {
        println!("{rounds} {name}");
    }
    Ok(())
}
