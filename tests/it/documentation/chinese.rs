//! The Chinese pages: emphasis that is rendered, and one name for a thing.

use super::{PAGES, read};

/// Other names for what the pages call 续期, 响应, 调用方, 限流, 退避, 缓存 and 控制台.
const OTHER_NAMES: [&str; 21] = [
    "刷新",
    "续约",
    "换新",
    "续签",
    "延期",
    "应答",
    "回应",
    "回复",
    "答复",
    "回答",
    "调用端",
    "请求方",
    "限速",
    "限频",
    "流控",
    "限额",
    "避让",
    "退让",
    "快取",
    "高速缓存",
    "看板",
];

/// The text of a page outside fenced blocks; a code span is replaced by its two backticks.
fn prose(page: &str) -> String {
    let text = page.split("\n```").step_by(2).collect::<Vec<_>>().join("\n");
    text.split('\n').map(|line| line.split('`').step_by(2).collect::<Vec<_>>().join("``") + "\n").collect()
}

fn chinese_pages() -> impl Iterator<Item = String> {
    [read("SECURITY.zh-CN.md")].into_iter().chain(PAGES.iter().map(|page| page.chinese.clone()))
}

/// The lines whose `*` are not rendered as emphasis, by the rules of CommonMark (section 6.2): beside a letter, what lies
/// inside the marks must not begin or end with punctuation.
fn broken_emphasis(page: &str) -> Vec<String> {
    let is_punctuation = |letter: char| !letter.is_alphanumeric() && !letter.is_whitespace();
    let is_broken = |line: &&str| {
        let letters: Vec<_> = line.chars().collect();
        let (mut at, mut open) = (0, Vec::new());
        while at < letters.len() {
            let length = letters[at..].iter().take_while(|letter| **letter == '*').count();
            if length == 0 {
                at += 1;
                continue;
            }
            let before = at.checked_sub(1).map_or(' ', |before| letters[before]);
            let after = letters.get(at + length).copied().unwrap_or(' ');
            let flanks = |inside: char, outside: char| {
                !inside.is_whitespace()
                    && (!is_punctuation(inside) || outside.is_whitespace() || is_punctuation(outside))
            };
            if open.last() == Some(&length) && flanks(before, after) {
                open.pop();
            } else if flanks(after, before) {
                open.push(length);
            } else {
                return true;
            }
            at += length;
        }
        !open.is_empty()
    };
    prose(page).lines().filter(|line| is_broken(line)).map(str::to_owned).collect()
}

#[test]
fn emphasis_in_chinese_pages_is_rendered() {
    for page in chinese_pages() {
        assert_eq!(broken_emphasis(&page), [""; 0]);
    }
}

#[test]
fn emphasis_check_follows_commonmark() {
    for line in [
        "*依据源码*。地址",
        "替身（*通行证*，pass）",
        "**续期：** 见下",
        "下文中，*运行过* 指：",
        "“**慢**”",
        "*a* b*c*d",
    ] {
        assert_eq!(broken_emphasis(line), [""; 0], "{line}");
    }
    for line in [
        "*依据源码。*地址",
        "见**“响应”**一节",
        "这是**`token`**的值",
        "一个 * 号",
        "*没有结束",
        "**续期：**见下",
    ] {
        assert_eq!(broken_emphasis(line), [line.replace("`token`", "``")], "{line}");
    }
}

#[test]
fn chinese_pages_have_one_name_for_a_thing() {
    for page in chinese_pages() {
        let text = prose(&page);
        let found: Vec<_> =
            text.lines().filter(|line| OTHER_NAMES.iter().any(|name| line.contains(name))).collect();
        assert_eq!(found, [""; 0]);
    }
}
