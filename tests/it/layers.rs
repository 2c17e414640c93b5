//! Modules import only modules listed below them in `src/lib.rs`, and the files of a module do not import each other in a
//! circle. The simulator's files may: its routes and its state belong together.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The imports of each file, both as paths of modules: `crate::server::http1`.
type Imports = BTreeMap<String, BTreeSet<String>>;

#[test]
fn modules_import_only_downwards() {
    let order = modules_in_order();
    let level = |module: &str| order.iter().position(|name| name == top_level(module));
    let mut upwards = Vec::new();
    for (file, imported) in imports() {
        for module in imported {
            if let (Some(from), Some(to)) = (level(&file), level(&module))
                && from > to
            {
                upwards.push(format!("{file} imports {module}"));
            }
        }
    }
    assert!(upwards.is_empty(), "move the item down, or pass it as an argument: {upwards:#?}");
}

#[test]
fn files_of_a_module_import_without_circles() {
    let mut imports = imports();
    imports.retain(|file, _| top_level(file) != "simulator");
    for (file, imported) in &mut imports {
        // A file and those below it are one: a child names items of its parent.
        imported.retain(|module| top_level(module) == top_level(file) && !is_within(file, module));
    }
    // Files that import none of the others are taken out until only circles are left.
    loop {
        let left: BTreeSet<_> = imports.keys().cloned().collect();
        imports.retain(|_, imported| imported.iter().any(|module| left.contains(module)));
        if imports.len() == left.len() {
            break;
        }
    }
    assert!(imports.is_empty(), "these files import each other in a circle: {imports:#?}");
}

/// The names in `src/lib.rs`, from top to bottom.
fn modules_in_order() -> Vec<String> {
    let lib = fs::read_to_string(source().join("lib.rs")).expect("src/lib.rs is readable");
    let names = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.split(';').next());
    names.map(str::to_owned).collect()
}

/// The imports of all files but the tests.
fn imports() -> Imports {
    let files = rust_files(&source());
    let modules: BTreeSet<_> = files.iter().map(|file| module_of(file)).collect();
    let mut imports = Imports::new();
    for file in files.iter().filter(|file| !file.to_string_lossy().contains("/tests")) {
        let module = module_of(file);
        let text = fs::read_to_string(file).expect("the file is readable");
        let paths = paths_in(text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default());
        let imported = paths.iter().filter_map(|path| longest_module(&absolute(path, &module), &modules));
        imports.insert(module.clone(), imported.filter(|other| *other != module).collect());
    }
    imports
}

/// All paths that begin with `crate`, `super` or `self`, those in braces written out.
fn paths_in(text: &str) -> Vec<String> {
    let code: String = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code: String = code.split_whitespace().collect::<Vec<_>>().join(" ").replace(":: {", "::{");
    let mut paths = Vec::new();
    for root in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(root) {
            let is_start = !code[..at]
                .ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':');
            if is_start {
                expand("", &code[at..], &mut paths);
            }
        }
    }
    paths
}

/// Writes out the path, or the tree of paths, at the start of `text`; returns what follows it.
fn expand<'a>(prefix: &str, text: &'a str, paths: &mut Vec<String>) -> &'a str {
    let end =
        text.find(|next: char| !next.is_alphanumeric() && next != '_' && next != ':').unwrap_or(text.len());
    let (name, mut rest) = text.split_at(end);
    let path = format!("{prefix}{name}");
    if !name.ends_with("::") || !rest.starts_with('{') {
        paths.push(path);
        return rest;
    }
    rest = &rest[1..];
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        if rest.is_empty() || rest.starts_with('}') {
            return rest.get(1..).unwrap_or_default();
        }
        let before = rest.len();
        rest = expand(&path, rest, paths);
        rest = rest.trim_start_matches(|next| next != ',' && next != '}');
        assert!(rest.len() < before, "a list of imports is not understood: {path}");
    }
}

fn absolute(path: &str, module: &str) -> String {
    if let Some(rest) = path.strip_prefix("self::") {
        return format!("{module}::{rest}");
    }
    let (mut rest, mut base) = (path, module);
    while let Some(above) = rest.strip_prefix("super::") {
        rest = above;
        base = base.rsplit_once("::").map_or(base, |(parent, _)| parent);
    }
    if rest.len() == path.len() { path.to_owned() } else { format!("{base}::{rest}") }
}

fn longest_module(path: &str, modules: &BTreeSet<String>) -> Option<String> {
    let mut module = path.trim_end_matches(':');
    while !modules.contains(module) {
        module = module.rsplit_once("::")?.0;
    }
    Some(module.to_owned())
}

fn is_within(file: &str, module: &str) -> bool {
    file.starts_with(&format!("{module}::")) || module.starts_with(&format!("{file}::"))
}

fn top_level(module: &str) -> &str {
    module.split("::").nth(1).unwrap_or_default()
}

fn module_of(file: &Path) -> String {
    let below = file.strip_prefix(source()).expect("a file of src").with_extension("");
    match below.to_string_lossy().as_ref() {
        "lib" | "main" => "crate".to_owned(),
        path => format!("crate::{}", path.replace('/', "::")),
    }
}

/// All Rust files below `folder`.
pub fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder is readable") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}
