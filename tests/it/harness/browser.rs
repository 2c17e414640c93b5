//! A headless Chromium, controlled over its debugging pipe. Collects the errors of the page.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::{
    harness::{WAIT_TIMEOUT, with_timeout},
    process::tool,
};

/// A browser with one page.
pub struct Browser {
    child: Child,
    input: ChildStdin,
    messages: mpsc::UnboundedReceiver<Value>,
    session: Option<String>,
    calls: u64,
    /// Console errors, exceptions and violations of the Content-Security-Policy.
    pub errors: Vec<String>,
    /// User name and password for HTTP authentication.
    pub login: Option<(&'static str, &'static str)>,
    _profile: TempDir,
}

impl Browser {
    /// Starts a browser with an empty page.
    pub async fn start() -> Self {
        let profile = tempfile::tempdir().expect("a directory");
        let mut command = Command::new("sh");
        // Chromium reads commands from descriptor 3 and writes to descriptor 4.
        let script = "exec 3<&0 4>&1 </dev/null >/dev/null 2>&1; exec \"$0\" \"$@\"";
        command.args(["-c", script, &tool("chromium"), "--headless=new", "--remote-debugging-pipe"]);
        command.args(["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"]);
        command.args(["--disable-background-networking", "--disable-component-update", "--no-proxy-server"]);
        command.args(["--disable-dev-shm-usage", "--hide-scrollbars"]);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell");
        let input = child.stdin.take().expect("a pipe");
        let output = child.stdout.take().expect("a pipe");
        let (sender, messages) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for message in BufReader::new(output).split(0) {
                let message = message.ok().and_then(|message| serde_json::from_slice(&message).ok());
                if message.is_none_or(|message| sender.send(message).is_err()) {
                    break;
                }
            }
        });
        let mut browser = Self {
            child,
            input,
            messages,
            session: None,
            calls: 0,
            errors: Vec::new(),
            login: None,
            _profile: profile,
        };
        browser.attach().await;
        browser
    }

    async fn attach(&mut self) {
        let target = self.call("Target.createTarget", json!({ "url": "about:blank" })).await;
        let target = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = self.call("Target.attachToTarget", target).await;
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            self.call(&format!("{domain}.enable"), json!({})).await;
        }
    }

    /// Sends a command and returns its result.
    pub async fn call(&mut self, method: &str, parameters: Value) -> Value {
        let id = self.send_command(method, parameters);
        loop {
            let message = with_timeout(self.messages.recv()).await.expect("a running browser");
            if message["id"] == id {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.on_event(&message);
        }
    }

    fn send_command(&mut self, method: &str, parameters: Value) -> u64 {
        self.calls += 1;
        let mut message = json!({ "id": self.calls, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.input.write_all(format!("{message}\0").as_bytes()).expect("the browser reads");
        self.calls
    }

    /// Handles an event of the browser.
    fn on_event(&mut self, message: &Value) {
        let parameters = &message["params"];
        match message["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" => self.errors.push(parameters["exceptionDetails"].to_string()),
            "Runtime.consoleAPICalled" if parameters["type"] == "error" => {
                self.errors.push(parameters["args"].to_string());
            }
            "Log.entryAdded" if parameters["entry"]["level"] == "error" => {
                self.errors.push(parameters["entry"].to_string());
            }
            "Fetch.requestPaused" => {
                self.send_command("Fetch.continueRequest", json!({ "requestId": parameters["requestId"] }));
            }
            "Fetch.authRequired" => self.log_in(&parameters["requestId"]),
            _ => {}
        }
    }

    fn log_in(&mut self, request: &Value) {
        let response = match self.login {
            Some((name, password)) => {
                json!({ "response": "ProvideCredentials", "username": name, "password": password })
            }
            None => json!({ "response": "CancelAuth" }),
        };
        self.send_command(
            "Fetch.continueWithAuth",
            json!({ "requestId": request, "authChallengeResponse": response }),
        );
    }

    /// Opens the dashboard at this address.
    pub async fn open_dashboard(&mut self, address: SocketAddr) {
        self.call("Page.navigate", json!({ "url": format!("http://{address}/") })).await;
    }

    /// Evaluates an expression in the page.
    pub async fn eval(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true, "userGesture": true });
        let result = self.call("Runtime.evaluate", parameters).await;
        assert!(result["exceptionDetails"].is_null(), "{expression}: {}", result["exceptionDetails"]);
        result["result"]["value"].clone()
    }

    /// Waits until an expression of the page is neither null nor false; returns its value.
    pub async fn wait_for(&mut self, expression: &str) -> Value {
        let start = Instant::now();
        loop {
            // During a navigation the expression may throw.
            let guarded = format!("(() => {{ try {{ return {expression} }} catch {{ return null }} }})()");
            let value = self.eval(&guarded).await;
            if !matches!(value, Value::Null | Value::Bool(false)) {
                return value;
            }
            if start.elapsed() > WAIT_TIMEOUT {
                let text = self.eval("document.body.innerText").await;
                panic!("timed out waiting for {expression}; errors: {:?}; page: {text}", self.errors);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The text of the first element that matches a selector.
    pub async fn text(&mut self, selector: &str) -> String {
        let found = self.eval(&format!("document.querySelector({selector:?})?.innerText ?? ''")).await;
        found.as_str().unwrap_or_default().to_owned()
    }

    /// Clicks an element.
    pub async fn click(&mut self, selector: &str) {
        self.wait_for(&format!(
            "(document.querySelector({selector:?})?.click(), !!document.querySelector({selector:?}))"
        ))
        .await;
    }

    /// Replaces the text of an input as a user would.
    pub async fn fill(&mut self, selector: &str, text: &str) {
        let script = "(() => { const input = document.querySelector(SELECTOR); input.focus(); input.select(); return true; })()";
        self.wait_for(&script.replace("SELECTOR", &format!("{selector:?}"))).await;
        self.call("Input.insertText", json!({ "text": text })).await;
    }

    /// Presses a key: `Tab`, `Enter`, `Escape` or `Space`.
    pub async fn press(&mut self, key: &str) {
        let (key, code, text) = match key {
            "Tab" => ("Tab", 9, ""),
            "Enter" => ("Enter", 13, "\r"),
            "Escape" => ("Escape", 27, ""),
            _ => (" ", 32, " "),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code });
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = text.into();
            }
            self.call("Input.dispatchKeyEvent", event).await;
        }
    }

    /// Sets the size of the window, in pixels.
    pub async fn resize(&mut self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Writes a screenshot to the directory in `SCREENSHOTS`, if that is set.
    pub async fn screenshot(&mut self, name: &str) {
        let Some(dir) = std::env::var_os("SCREENSHOTS") else { return };
        let screenshot = self.call("Page.captureScreenshot", json!({ "captureBeyondViewport": true })).await;
        let bytes = BASE64_STANDARD.decode(screenshot["data"].as_str().expect("data")).expect("base64");
        std::fs::write(std::path::Path::new(&dir).join(format!("{name}.png")), bytes).expect("a file");
    }

    /// Asserts that the page had no errors.
    #[track_caller]
    pub fn assert_no_errors(&self) {
        assert!(self.errors.is_empty(), "{:#?}", self.errors);
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
