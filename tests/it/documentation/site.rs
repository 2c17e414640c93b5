//! The links of all pages, and the table of contents of the site that `packaging/site` makes of them.

use std::{collections::BTreeSet, fs, path::Path};

use super::{PAGE_NAMES, read};

/// Every Markdown file that readers open, by its path in the repository.
fn files() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let in_folder = |folder: &str| {
        let entries = fs::read_dir(root.join(folder)).expect("a directory").flatten();
        let names = entries.map(|entry| entry.file_name().into_string().expect("a name in UTF-8"));
        let pages = names.filter(|name| name.ends_with(".md"));
        pages.map(|name| Path::new(folder).join(name).display().to_string()).collect::<Vec<_>>()
    };
    [in_folder(""), in_folder("docs")].concat()
}

/// The targets of the links and pictures outside code, with their line.
fn links(page: &str) -> Vec<(&str, &str)> {
    let (mut found, mut in_code) = (Vec::new(), false);
    for line in page.lines() {
        in_code ^= line.starts_with("```");
        if in_code {
            continue;
        }
        // Every second part of a line is a code span, in which nothing is a link.
        for text in line.split('`').step_by(2) {
            let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            found.extend(targets.map(|target| (target, line)));
        }
        let pictures = line.split("src=\"").skip(1).filter_map(|rest| rest.split('"').next());
        found.extend(pictures.map(|target| (target, line)));
    }
    found
}

/// The anchors that GitHub and mdBook both give the headings of a page.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let names = headings.map(|line| line.trim_start_matches(['#', ' ']).to_lowercase());
    let kept = |letter: &char| letter.is_alphanumeric() || " -_".contains(*letter);
    names.map(|name| name.chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

#[test]
fn links_of_all_pages_resolve() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut broken = Vec::new();
    for file in files() {
        let page = read(&file);
        for (target, line) in links(&page) {
            if ["http://", "https://", "mailto:"].iter().any(|scheme| target.starts_with(scheme)) {
                continue;
            }
            let (name, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = Path::new(&file).parent().expect("a folder").join(name);
            let text = match name {
                "" => Some(page.clone()),
                _ => {
                    fs::read(root.join(&path)).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                }
            };
            if !text.is_some_and(|text| anchor.is_empty() || anchors(&text).contains(anchor)) {
                broken.push(format!("{file}: {target}: {line}"));
            }
        }
    }
    assert_eq!(broken, [""; 0]);
}

#[test]
fn link_check_finds_what_is_broken() {
    let page = "# A & b\n[x](y.md#z) `[no](no)` <img src=\"p.png\">\n```sh\n[no](no)\n```\n";
    assert_eq!(links(page).into_iter().map(|(target, _)| target).collect::<Vec<_>>(), ["y.md#z", "p.png"]);
    assert_eq!(anchors(page).into_iter().collect::<Vec<_>>(), ["a--b"]);
}

/// A page that is not in the list of these tests is not tested, one that is not in the table of contents is not on the site.
#[test]
fn every_page_is_tested_and_on_the_site() {
    let tested =
        PAGE_NAMES.iter().flat_map(|name| [format!("docs/{name}.md"), format!("docs/{name}.zh-CN.md")]);
    let tested: BTreeSet<_> = tested.collect();
    let in_docs: BTreeSet<_> = files().into_iter().filter(|file| file.starts_with("docs/")).collect();
    assert_eq!(tested, in_docs);
    let contents = read("packaging/site/SUMMARY.md");
    let listed: Vec<_> = links(&contents).into_iter().map(|(target, _)| target.to_owned()).collect();
    let unique: BTreeSet<_> = listed.iter().cloned().collect();
    assert_eq!(unique.len(), listed.len(), "a page is listed twice");
    let readmes = [
        "README.md",
        "README.zh-CN.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "SECURITY.zh-CN.md",
    ];
    assert_eq!(unique, tested.into_iter().chain(readmes.map(str::to_owned)).collect());
}

#[test]
fn chart_of_the_speed_has_the_measured_figures() {
    let (chart, page) = (read("docs/images/speed.svg"), read("docs/performance.md"));
    let texts: Vec<_> = chart.split("</text>").filter_map(|text| text.rsplit('>').next()).collect();
    for name in ["wecom-proxy", "nginx", "HAProxy", "nginx + Lua"] {
        let at = texts.iter().position(|text| *text == name).expect("a name");
        // After the name comes what it does, then the figure.
        let value = texts[at + 2];
        let row = page.lines().find(|line| {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            cells.len() > 3 && cells[1] == "small GET" && cells[2].trim_end_matches(", whole job") == name
        });
        let row = row.unwrap_or_else(|| panic!("no row of {name}"));
        assert_eq!(row.split('|').nth(3).map(str::trim), Some(value), "{name}");
        for readme in ["README.md", "README.zh-CN.md"] {
            assert!(read(readme).contains(value), "{readme}: {name} {value}");
        }
    }
}
