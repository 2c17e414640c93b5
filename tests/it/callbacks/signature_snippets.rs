//! The checks of the signature in docs/callbacks.md, each run where its language is at hand.

use std::{
    fs,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

const PAGE: &str = include_str!("../../../docs/callbacks.md");
const SECRET: &str = "secret-of-the-target";
const BODY: &str = "<xml>消息</xml>";

/// A language, the command that runs a file, the file's name, and what surrounds the snippet and the calls in it.
/// `CALLS` becomes one call for each header, whose results are printed, one a line.
const LANGUAGES: [(&str, &str, &str, &str, &str); 5] = [
    (
        "python",
        "python3",
        "check.py",
        "SNIPPET\nimport sys\nCALLS",
        "print(str(is_signed(HEADER, BODY.encode(), SECRET)).lower())",
    ),
    (
        "javascript",
        "node",
        "check.js",
        "SNIPPET\nCALLS",
        "console.log(isSigned(HEADER, Buffer.from(BODY), SECRET));",
    ),
    (
        "java",
        "java",
        "Check.java",
        "class Check { SNIPPET\npublic static void main(String[] a) throws Exception { CALLS } }",
        "System.out.println(isSigned(HEADER, BODY.getBytes(\"UTF-8\"), SECRET));",
    ),
    (
        "php",
        "php",
        "check.php",
        "<?php SNIPPET\nCALLS",
        "echo is_signed(HEADER, BODY, SECRET) ? \"true\\n\" : \"false\\n\";",
    ),
    (
        "go",
        "go",
        "check.go",
        "package main\nimport (\"crypto/hmac\"; \"crypto/sha256\"; \"fmt\"; \"time\")\nSNIPPET\nfunc main() { CALLS }",
        "fmt.Println(isSigned(HEADER, []byte(BODY), SECRET));",
    ),
];

fn signature(time: u64, secret: &str) -> String {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(secret.as_bytes()).expect("a key");
    mac.update(format!("{time}.{BODY}").as_bytes());
    let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={time},v1={hex}")
}

fn snippet(language: &str) -> &'static str {
    let block = PAGE.split_once(&format!("```{language}\n")).expect("a block").1;
    block.split_once("\n```").expect("its end").0
}

#[test]
fn documented_signature_checks_work() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let valid = signature(now, SECRET);
    let headers = [
        valid.clone(),
        signature(now, "another-secret"),
        signature(now - 600, SECRET),
        valid.replace("t=", "t=1"),
        format!("{valid}0"),
        String::new(),
    ];
    let mut run = 0;
    for (language, command, file, frame, call) in LANGUAGES {
        let calls: Vec<_> = headers
            .iter()
            .map(|header| {
                let quoted = |text: &str| format!("\"{text}\"");
                call.replace("HEADER", &quoted(header))
                    .replace("BODY", &quoted(BODY))
                    .replace("SECRET", &quoted(SECRET))
            })
            .collect();
        let program = frame.replace("CALLS", &calls.join("\n")).replace("SNIPPET", snippet(language));
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(file), program).expect("the program");
        let arguments: &[&str] = if language == "go" { &["run", file] } else { &[file] };
        let Ok(output) = Command::new(command).args(arguments).current_dir(dir.path()).output() else {
            continue;
        };
        let lines = String::from_utf8_lossy(&output.stdout);
        let expected = ["true", "false", "false", "false", "false", "false"];
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(lines.lines().collect::<Vec<_>>(), expected, "{language}: {error}");
        run += 1;
    }
    assert!(run >= 1, "no language is at hand");
}
