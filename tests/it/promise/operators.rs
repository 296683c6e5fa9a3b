//! What operators do meanwhile, and what breaks.

use std::collections::BTreeMap;
use std::time::Duration;

use bson::doc;
use nix::sys::signal::Signal;
use testbed::process::Process;
use testbed::proxy::{Proxy, Wire};

use super::programme::{Act, SITES};
use crate::support::Site;
use crate::support::site::HUB;

/// Operators, with their hands on the wires between the program and each spoke.
pub struct Operators {
    wires: BTreeMap<&'static str, Proxy>,
    repairs: Vec<Process>,
}

impl Operators {
    /// Puts a wire between the program and each spoke.
    pub async fn of(site: &mut Site) -> Self {
        let mut wires = BTreeMap::new();
        for spoke in SITES.into_iter().filter(|name| *name != HUB) {
            let wire = Proxy::to(site.nodes[spoke].port()).await.unwrap();
            site.reach(spoke, &wire.uri());
            wires.insert(spoke, wire);
        }
        Self { wires, repairs: Vec::new() }
    }

    pub async fn act(&mut self, site: &mut Site, act: &Act) {
        let pause = async |millis: u64| tokio::time::sleep(Duration::from_millis(millis)).await;
        // The program's answers do not matter, because another part may be broken at the moment.
        let post = |site: &Site, zone: &str, what: &str| {
            drop(site.program.as_ref().unwrap().post(&format!("/api/v1/spokes/{zone}/{what}")));
        };
        match act {
            Act::KillProgram => {
                site.kill();
                site.launch();
            }
            Act::FreezeProgram(millis) => {
                site.program.as_ref().unwrap().process().signal(Signal::SIGSTOP).unwrap();
                pause(*millis).await;
                site.program.as_ref().unwrap().process().signal(Signal::SIGCONT).unwrap();
            }
            Act::FreezeServer(name, millis) => {
                site.nodes[*name].freeze().unwrap();
                pause(*millis).await;
                site.nodes[*name].thaw().unwrap();
            }
            Act::Cut(spoke, millis) => {
                self.wires[spoke].set(Wire::Cut);
                pause(*millis).await;
                self.wires[spoke].set(Wire::Open);
            }
            Act::StepDown(name) => {
                drop(site.nodes[*name].admin(doc! { "replSetStepDown": 1, "force": true }).await);
            }
            Act::Conflict(name, times) => {
                let labels = ["TransientTransactionError"].as_slice();
                let data = doc! {
                    "failCommands": ["commitTransaction"], "errorCode": 112, "errorLabels": labels,
                    "appName": "spokesync",
                };
                fail(site, name, *times, data).await;
            }
            Act::Slow(name, millis) => {
                let data = doc! {
                    "failCommands": ["find", "insert", "update", "commitTransaction"], "blockConnection": true,
                    "blockTimeMS": i64::try_from(*millis).unwrap(), "appName": "spokesync",
                };
                fail(site, name, 8, data).await;
            }
            Act::LoseHistory(name) => {
                let data = doc! { "failCommands": ["getMore"], "errorCode": 136, "appName": "spokesync" };
                fail(site, name, 1, data).await;
            }
            Act::Watch(spoke, watch, policy) => {
                site.watch(spoke, watch);
                site.on_unwatch(spoke, policy);
                site.write_config();
                site.program.as_ref().unwrap().process().signal(Signal::SIGHUP).unwrap();
            }
            Act::Pause(spoke, millis) => {
                post(site, spoke, "pause");
                pause(*millis).await;
                post(site, spoke, "resume");
            }
            Act::Post(spoke, what) => post(site, spoke, what),
            Act::RetryLetters(spoke) => post(site, spoke, "dead-letters/retry"),
            Act::DropLetters(spoke) => post(site, spoke, "dead-letters/drop"),
            Act::Repair => {
                let output = format!("repair-{}", self.repairs.len());
                self.repairs.push(site.begin(&["verify", "--repair"], &output));
            }
        }
    }

    /// Ends every fault, and waits for repairs.
    pub async fn end(&mut self, site: &mut Site) {
        self.wires.values().for_each(|wire| wire.set(Wire::Open));
        for name in SITES {
            fail(site, name, 0, doc! { "failCommands": [] }).await;
        }
        for mut repair in self.repairs.drain(..) {
            let mut is_over = false;
            for _ in 0..300 {
                is_over = repair.exit().unwrap().is_some();
                if is_over {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert!(is_over, "a repair ends");
        }
    }
}

/// Makes commands fail this number of times; 0: no longer.
async fn fail(site: &Site, name: &str, times: i32, data: bson::Document) {
    let mode = if times == 0 {
        doc! { "mode": "off" }
    } else {
        doc! { "mode": { "times": times } }
    };
    let mut command = doc! { "configureFailPoint": "failCommand", "mode": mode.get("mode").unwrap() };
    if times > 0 {
        command.insert("data", data);
    }
    drop(site.nodes[name].admin(command).await);
}
