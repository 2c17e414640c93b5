//! Keeps the language of the field: no persons or metaphors for parts of the program, bounds named `MAX_` or `MIN_`, and
//! no file too long to read at once.

use std::{fs, path::Path};

use crate::layers::rust_files;

/// Banned words, each with a bar in it so that this file does not contain them.
const BANNED: &str = "no|body some|body any|body every|body who|ever ho|use se|at gu|est tr|ay qu|ill sh|elf cr|ew \
    acquain|tance fami|liar hus|hed out|box left|over led|ger ta|lly de|sk confi|dant gui|se cro|wd door|man \
    conver|sation conver|se surround|ings chit|chat";
/// What the name of a constant must not begin with: bounds are `MAX_` and `MIN_`, durations end in `_TIMEOUT` and the like.
const CONSTANTS: &str = "MOST LONGEST LEAST SHORTEST FEW FEWEST MANY LARGEST FURTHEST DEEPEST TOO PATIENCE LOOK REST SAY \
    ASK TOLD WHILE PACE";
/// Lines of a file, without those of its inline tests.
const MAX_LINES: usize = 400;

#[test]
fn tree_uses_the_words_of_the_field() {
    let banned: Vec<_> = BANNED.split_whitespace().map(|word| word.replace('|', "")).collect();
    let is_banned =
        |word: &str| banned.iter().any(|banned| word == banned || word.strip_suffix('s') == Some(banned));
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz/src"] {
        for file in rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)) {
            let text = fs::read_to_string(&file).expect("the file is readable");
            let mut report = |what: &str| found.push(format!("{}: {what}", file.display()));
            words_in(&text).filter(|word| is_banned(word)).for_each(|word| report(&word));
            let constants = text.split("const ").skip(1).filter_map(|rest| rest.split(':').next());
            let is_unnamed =
                |name: &&str| CONSTANTS.split_whitespace().any(|prefix| name.starts_with(prefix));
            constants.filter(is_unnamed).for_each(&mut report);
            let lines = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().lines().count();
            if folder == "src" && !file.to_string_lossy().contains("/tests") && lines > MAX_LINES {
                report(&format!("{lines} lines"));
            }
        }
    }
    assert!(found.is_empty(), "CONTRIBUTING.md has the rules: {found:#?}");
}

/// The words of comments, texts and names, in small letters: `AuthCache` and `AUTH_CACHE` are two words each.
fn words_in(text: &str) -> impl Iterator<Item = String> {
    let names = text.split(|letter: char| !letter.is_ascii_alphabetic());
    let words = names.flat_map(|name| {
        let is_camel = name.contains(|letter: char| letter.is_ascii_lowercase());
        let starts =
            name.char_indices().skip(1).filter(move |(_, letter)| is_camel && letter.is_ascii_uppercase());
        let ends = starts.map(|(at, _)| at).chain([name.len()]);
        ends.scan(0, |start, end| Some(&name[std::mem::replace(start, end)..end]))
    });
    words.map(str::to_ascii_lowercase)
}
