//! A replica set with three members, which can lose its majority.

use anyhow::{Context, Result};
use bson::doc;

use crate::node::{Node, Options};

/// A replica set with three members on this machine.
#[derive(Debug)]
pub struct Set {
    members: Vec<Node>,
}

impl Set {
    /// Starts a set, and waits for a primary.
    ///
    /// # Errors
    /// If no `mongod` is found, or a member does not start.
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

    /// Freezes all members except the primary. The primary can commit no majority write any more, and steps down after
    /// some seconds.
    ///
    /// # Errors
    /// If the set has no primary.
    pub async fn lose_majority(&self) -> Result<()> {
        let primary = self.primary().await.context("the set has no primary")?;
        let others = self.members.iter().enumerate().filter(|(number, _)| *number != primary);
        others.map(|(_, member)| member).try_for_each(Node::freeze)
    }

    /// Resumes all members.
    ///
    /// # Errors
    /// If a member is not running.
    pub fn regain_majority(&self) -> Result<()> {
        self.members.iter().try_for_each(Node::thaw)
    }

    /// Stops the replication to all members except the primary, while they still vote: the primary stays, and no
    /// majority confirms its writes.
    ///
    /// # Errors
    /// If the set has no primary, or a member does not answer.
    pub async fn stop_replication(&self) -> Result<()> {
        self.set_replication("alwaysOn").await
    }

    /// Resumes the replication.
    ///
    /// # Errors
    /// If the set has no primary, or a member does not answer.
    pub async fn resume_replication(&self) -> Result<()> {
        self.set_replication("off").await
    }

    async fn set_replication(&self, mode: &str) -> Result<()> {
        let primary = self.primary().await.context("the set has no primary")?;
        for (number, member) in self.members.iter().enumerate() {
            if number != primary {
                let admin = member.direct_client().await?.database("admin");
                admin.run_command(doc! { "configureFailPoint": "rsSyncApplyStop", "mode": mode }).await?;
            }
        }
        Ok(())
    }

    /// True if the set has a primary.
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
