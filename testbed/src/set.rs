//! A replica set of three members, which can lose its majority.

use anyhow::{Context, Result};

use crate::node::{Node, Options};

/// Three members on this machine.
#[derive(Debug)]
pub struct Set {
    members: Vec<Node>,
}

impl Set {
    /// Starts a set, and waits until it has a primary.
    ///
    /// # Errors
    /// If there is no `mongod`, or one does not start.
    pub async fn start(name: &str, options: &Options) -> Result<Self> {
        let members: Result<Vec<Node>> = (0..3).map(|_| Node::launch(name, options.clone())).collect();
        let set = Self { members: members? };
        let hosts: Vec<String> = set.members.iter().map(Node::host).collect();
        set.members[0].initiate(&hosts).await?;
        set.members[0].until("the set has a primary", async || Ok(set.primary().await.is_some())).await?;
        Ok(set)
    }

    /// The connection string.
    pub fn uri(&self) -> String {
        let hosts: Vec<String> = self.members.iter().map(Node::host).collect();
        format!("mongodb://{}/?replicaSet=rs", hosts.join(","))
    }

    /// Freezes all members but the primary: it can write nothing durably any more, and steps down after some seconds.
    ///
    /// # Errors
    /// If there is no primary.
    pub async fn lose_majority(&self) -> Result<()> {
        let primary = self.primary().await.context("there is no primary")?;
        let others = self.members.iter().enumerate().filter(|(number, _)| *number != primary);
        others.map(|(_, member)| member).try_for_each(Node::freeze)
    }

    /// Lets all members go on.
    ///
    /// # Errors
    /// If one is not running.
    pub fn regain_majority(&self) -> Result<()> {
        self.members.iter().try_for_each(Node::thaw)
    }

    /// Whether a member is primary.
    pub async fn has_primary(&self) -> bool {
        self.primary().await.is_some()
    }

    async fn primary(&self) -> Option<usize> {
        for (number, member) in self.members.iter().enumerate() {
            if member.is_primary().await {
                return Some(number);
            }
        }
        None
    }
}
