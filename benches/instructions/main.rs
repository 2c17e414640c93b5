//! Counts the instructions of each part of a request's way, and compares them with `benches/baseline.txt`.
//!
//! Time is no measure on a machine that does other things too; instructions are. They are counted by callgrind, all parts
//! in one run, and are the same to a small fraction each time. gungraun (once iai-callgrind), which does the like, wants a
//! second program of the very same version installed, and compares with what callgrind itself wrote for an earlier run, not
//! with a text that can be committed and read.
//!
//! - `cargo bench --bench instructions` compares,
//! - `cargo bench --bench instructions -- renew` makes what is counted now the baseline.

#![allow(unreachable_pub, reason = "a bench program has no public side")]

mod baseline;
mod callgrind;
mod cases;
mod counter;
mod harness;

use std::{env, process::ExitCode};

use self::{
    baseline::Baseline,
    callgrind::{CHILD_ARGUMENT, processor},
    counter::Counter,
};

fn main() -> ExitCode {
    // Cargo adds --bench.
    let arguments: Vec<_> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => compare(),
        ["renew"] => renew(),
        [CHILD_ARGUMENT] => run_counted(),
        _ => Err("the only argument there is is \"renew\"".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(words) => {
            eprintln!("{words}");
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

/// What is counted: the parts, and a line for each.
fn run_counted() -> Result<(), String> {
    let mut counter = Counter::default();
    cases::count_all(&mut counter).map_err(|error| error.to_string())?;
    println!("{}", processor());
    for (name, rounds) in counter.parts() {
        println!("{rounds} {name}");
    }
    Ok(())
}
