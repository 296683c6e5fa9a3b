//! What operators do meanwhile, and what breaks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bson::{Document, RawDocumentBuf, doc};
use futures_util::TryStreamExt;
use mongodb::Collection;
use nix::sys::signal::Signal;
use testbed::process::Process;
use testbed::proxy::{Proxy, Wire};

use super::applications::{UNIQUE_AT, unique};
use super::judge::{Loss, values_of};
use super::programme::{Act, SITES};
use crate::support::Site;
use crate::support::site::HUB;

/// Operators, with their hands on the wires between the program and each spoke.
pub struct Operators {
    wires: BTreeMap<&'static str, Proxy>,
    repairs: Vec<Process>,
    /// The beginning of the programme.
    begun: Instant,
    /// What servers have lost so far.
    pub losses: Vec<Loss>,
}

impl Operators {
    /// Puts a wire between the program and each spoke.
    pub async fn of(site: &mut Site, begun: Instant) -> Self {
        let mut wires = BTreeMap::new();
        for spoke in SITES.into_iter().filter(|name| *name != HUB) {
            let wire = Proxy::to(site.nodes[spoke].port()).await.unwrap();
            site.reach(spoke, &wire.uri());
            wires.insert(spoke, wire);
        }
        Self { wires, repairs: Vec::new(), begun, losses: Vec::new() }
    }

    /// Backs up the servers that these acts restore.
    pub async fn prepare(&self, site: &mut Site, acts: &[(u64, Act)]) {
        for name in SITES {
            if acts.iter().any(|(_, act)| matches!(act, Act::Restore(restored) if *restored == name)) {
                site.nodes.get_mut(name).unwrap().back_up().await.unwrap();
            }
        }
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
            Act::DropCollection(name) | Act::Restore(name) | Act::Wipe(name) => self.lose(site, name, act).await,
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

    /// A server loses what it has. The program stands still meanwhile, so that it is known what was there.
    async fn lose(&mut self, site: &mut Site, name: &'static str, act: &Act) {
        let signal = |site: &Site, signal| site.program.as_ref().unwrap().process().signal(signal).unwrap();
        signal(site, Signal::SIGSTOP);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let from = self.begun.elapsed().as_millis();
        let all = async |collection: Collection<Document>| -> Vec<RawDocumentBuf> {
            let found = collection.clone_with_type::<RawDocumentBuf>().find(doc! {}).await.unwrap();
            found.try_collect().await.unwrap()
        };
        let mut elsewhere = Vec::new();
        for other in SITES.into_iter().filter(|other| *other != name) {
            elsewhere.extend(all(site.at(other)).await);
        }
        let elsewhere = values_of(&elsewhere);
        let mut only_here = values_of(&all(site.at(name)).await);
        only_here.retain(|value| !elsewhere.contains(value));
        if matches!(act, Act::DropCollection(_)) {
            site.at(name).drop().await.unwrap();
        } else {
            // Copies of removed versions are lost with the disk.
            for collection in ["set_aside", "dead_letters"] {
                only_here.extend(values_of(&all(site.own_collection(name, collection)).await));
            }
            let node = site.nodes.get_mut(name).unwrap();
            if matches!(act, Act::Restore(_)) { node.restore().await } else { node.wipe().await }.unwrap();
        }
        site.forget_client(name).await;
        if UNIQUE_AT.contains(&name) {
            unique(&site.at(name)).await.unwrap();
        }
        let until = self.begun.elapsed().as_millis();
        self.losses.push(Loss { site: name, from, until, only_here });
        signal(site, Signal::SIGCONT);
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
