//! A real browser without a window, driven by chromedriver.

use std::process::Command;

use fantoccini::wd::Capabilities;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use testbed::node::free_port;
use testbed::process::Process;

use super::{LIMIT, eventually};

/// A browser with one page.
pub struct Browser {
    pub page: Client,
    _driver: Process,
    _folder: TempDir,
}

impl Browser {
    /// Starts a browser with a page of this width and height in pixels.
    pub async fn start(width: u32, height: u32) -> Self {
        let driver = std::env::var("CHROMEDRIVER")
            .expect("use make, which finds a chromedriver, or set $CHROMEDRIVER to its path");
        let (port, folder) = (free_port().unwrap(), TempDir::new().unwrap());
        let mut command = Command::new(driver);
        command.arg(format!("--port={port}"));
        let driver = Process::start(&command, &folder.path().join("chromedriver.out")).unwrap();
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            &format!("--window-size={width},{height}"),
            &format!("--user-data-dir={}", folder.path().join("profile").display()),
        ]
        .map(str::to_owned);
        let mut wanted = Capabilities::new();
        wanted.insert("goog:chromeOptions".to_owned(), json!({ "args": arguments }));
        wanted.insert("goog:loggingPrefs".to_owned(), json!({ "browser": "ALL" }));
        let mut page = None;
        eventually("the browser starts", async || {
            let mut builder = ClientBuilder::new(HttpConnector::new());
            page = builder.capabilities(wanted.clone()).connect(&format!("http://127.0.0.1:{port}")).await.ok();
            page.is_some()
        })
        .await;
        Self { page: page.unwrap(), _driver: driver, _folder: folder }
    }

    /// Ends the browser, because its windows would outlive chromedriver.
    pub async fn end(self) {
        self.page.close().await.unwrap();
    }

    /// Waits until an element that matches the CSS selector shows the text.
    pub async fn shows(&self, selector: &str, text: &str) {
        let mut last = String::new();
        let shown = tokio::time::timeout(LIMIT, async {
            loop {
                last = self.text(selector).await;
                if last.contains(text) {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        });
        assert!(shown.await.is_ok(), "{selector} does not show {text:?}, but {last:?}");
    }

    /// The text of all elements that match the CSS selector.
    pub async fn text(&self, selector: &str) -> String {
        let script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent).join(' ')";
        self.run(script, vec![selector.into()]).await.as_str().unwrap_or_default().to_owned()
    }

    /// Clicks on the first element that matches the CSS selector.
    pub async fn click(&self, selector: &str) {
        let element = self.page.wait().at_most(LIMIT).for_element(Locator::Css(selector)).await.unwrap();
        element.click().await.unwrap();
    }

    /// Sends keys to the focused element.
    pub async fn press(&self, keys: &str) {
        self.page.active_element().await.unwrap().send_keys(keys).await.unwrap();
    }

    /// Runs a script in the page, and returns its result.
    pub async fn run(&self, script: &str, arguments: Vec<Value>) -> Value {
        self.page.execute(script, arguments).await.unwrap()
    }
}
