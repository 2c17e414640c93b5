//! `docs/agents.md`: its commands, and the script that carries rows over.

use std::io::Write;

use super::*;
use crate::harness::sha256;

const ADMIN_KEY: &str = "the-key-of-the-operator-0123456789";

/// A proxy with the state of the page.
fn serve() -> DocumentedSetup {
    let fragments = block_texts("toml", "fragment");
    let fragment =
        fragments.iter().find(|text| text.contains("[admin]") && text.contains("[state]")).expect("a state");
    let fragment = fragment.replace("/var/lib/wecom-proxy/", "").replace(&"0".repeat(64), &sha256(ADMIN_KEY));
    DocumentedSetup::serve(parse_toml(&fragment))
}

impl DocumentedSetup {
    /// Runs a script with the keys in its environment, and the script of `deploy/` on its path.
    fn run_with_keys(&self, script: &str) -> std::process::Output {
        let script = script.replace(PROXY, &self.listen).replace(ADMIN, &self.admin);
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
        let script = format!("PATH={}:$PATH\n{script}", deploy.display());
        let (key, mut shell) = ("the-key-of-billing-0123456789", shell(&script, self.dir.path()));
        shell.env("ADMIN_KEY", ADMIN_KEY).env("KEY", key).env("KEY_SHA256", sha256(key));
        shell.env("WECOM_HR_SECRET", &self.secret).output().expect("sh")
    }
}

#[test]
fn documented_api_commands_work() {
    let setup = serve();
    let mut all = String::new();
    for block in block_texts("sh", "state") {
        let output = setup.run_with_keys(&block);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{block}\n{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(stdout.matches("\"errcode\":0").count(), block.matches("/cgi-bin/").count(), "{stdout}");
        all.push_str(&stdout);
    }
    for expected in [
        "\"limit\":\"6000/m\"",
        "\"note\":",
        "\"origin\":\"state\"",
        "1 created",
        "\"next\":null",
        "\"key\":\"",
    ] {
        assert!(all.contains(expected), "no {expected} in {all}");
    }
    assert!(!all.contains(&setup.secret), "{all}");
}

#[test]
fn import_script_reads_each_format_and_reports_refused_rows() {
    let setup = serve();
    let rows = [
        (
            "rows.csv",
            "name,corpid,secret,agentid,plain\r\na,ww1,secret-of-a,1000002,/cgi-bin/x/* /cgi-bin/y/*\r\nb,ww2,\"secret-of-b\",,\r\n",
        ),
        ("rows.tsv", "corpid\tsecret\tname\tlimit\nww3\tsecret-of-c\tc\tNULL\n\nww4\tsecret-of-d\td\t5/s\n"),
        (
            "rows.json",
            "{\"name\":\"e\",\"corpid\":\"ww5\",\"secret\":\"secret-of-e\"}\n\n{\"name\":\"f\",\"corpid\":\"ww6\",\"secret\":\"secret-of-f\",\"accept_secret\":true}\n",
        ),
        (
            "bad.csv",
            "name,corpid,secret,color\na.b,ww1,secret-of-a,\ng,,secret-of-g,\nh,ww7,secret-of-h,red\n,ww8,secret-of-i,\nj,ww9,secret-of-j,\n",
        ),
    ];
    for (name, text) in rows {
        fs::File::create(setup.dir.path().join(name))
            .expect("a file")
            .write_all(text.as_bytes())
            .expect("a text");
    }
    let import = |arguments: &str| {
        let output = setup.run_with_keys(&format!("import-agents.py --url http://{ADMIN} {arguments}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let counts = |created, replaced, left, refused| {
        format!("{created} created, {replaced} replaced, {left} left alone, {refused} refused\n")
    };
    let ok = |text: String| (Some(0), text, String::new());
    assert_eq!(import("--dry-run rows.csv"), ok(format!("checked: {}", counts(2, 0, 0, 0))));
    for name in ["rows.csv", "rows.tsv", "rows.json"] {
        assert_eq!(import(name), ok(counts(2, 0, 0, 0)), "{name}");
    }
    assert_eq!(import("< rows.csv"), ok(counts(0, 2, 0, 0)));
    assert_eq!(import("--only-new rows.tsv"), ok(counts(0, 0, 2, 0)));
    let (status, stdout, stderr) = import("bad.csv");
    assert_eq!((status, stdout), (Some(1), counts(1, 0, 0, 4)), "{stderr}");
    for line in [
        "line 2: a.b: ",
        "line 3: g: agents.g.corpid",
        "line 4: h: agents.h.color",
        "line 5: the column name",
    ] {
        assert!(stderr.contains(line), "{stderr}");
    }
    assert!(!stderr.contains("secret-of"), "{stderr}");
    let shown = setup
        .run_with_keys(&format!("curl http://{ADMIN}/api/agents/a -H \"Authorization: Bearer $ADMIN_KEY\""));
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("[\"/cgi-bin/x/*\",\"/cgi-bin/y/*\"]") && shown.contains("1000002"), "{shown}");
}
