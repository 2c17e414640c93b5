//! `init`: writes the first configuration, and never changes a file that exists.

use std::fs;

use tempfile::TempDir;

use crate::process::{run, run_wecom_proxy, wecom_proxy};

#[tokio::test]
async fn init_writes_a_valid_file_of_six_lines() {
    let dir = TempDir::new().expect("a directory");
    let mut command = wecom_proxy(&["init"]);
    command.current_dir(dir.path());
    let output = run(command).await;
    assert_eq!((output.status, &*output.err), (0, ""));
    assert!(
        output.out.contains("WECOM_HR_SECRET") && output.out.contains("check --online\n"),
        "{}",
        output.out
    );
    let path = dir.path().join("proxy.toml");
    let text = fs::read_to_string(&path).expect("the file");
    assert_eq!(text.lines().count(), 6, "{text}");
    let mut check = wecom_proxy(&["check", "--config", path.to_str().expect("UTF-8")]);
    check.env("WECOM_HR_SECRET", "a-secret");
    let output = run(check).await;
    assert_eq!((output.status, &*output.err), (0, ""), "{}", output.out);
}

#[tokio::test]
async fn init_never_changes_an_existing_file() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("other.toml");
    let name = path.to_str().expect("UTF-8");
    for arguments in [["init", "--config", name], ["--config", name, "init"]] {
        fs::write(&path, "# mine\n").expect("a file");
        let output = run_wecom_proxy(&arguments).await;
        assert_eq!((output.status, &*output.out), (2, ""));
        assert!(output.err.contains(&format!("{name} exists")), "{}", output.err);
        assert_eq!(fs::read_to_string(&path).expect("the file"), "# mine\n");
    }
    // A link to nothing exists too, as does a directory.
    fs::remove_file(&path).expect("removed");
    std::os::unix::fs::symlink(dir.path().join("nothing"), &path).expect("a link");
    assert_eq!(run_wecom_proxy(&["init", "--config", name]).await.status, 2);
    assert!(!dir.path().join("nothing").exists());
    let missing = dir.path().join("missing/proxy.toml");
    let output = run_wecom_proxy(&["init", "--config", missing.to_str().expect("UTF-8")]).await;
    assert_eq!(output.status, 2);
    assert!(output.err.contains("missing/proxy.toml"), "{}", output.err);
}

#[tokio::test]
async fn init_names_the_file_in_its_next_step() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("first.toml");
    let name = path.to_str().expect("UTF-8");
    let output = run_wecom_proxy(&["init", "--config", name]).await;
    assert!(output.out.ends_with(&format!("check --online --config {name}\n")), "{}", output.out);
}
