//! Tells that another process of the same machine has ended, so that a program that was killed and starts again need
//! not wait until its former lease runs out.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;

/// What identifies a process for as long as the machine runs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Birth<'b> {
    /// The boot of the machine, a random id.
    boot: &'b str,
    /// The namespace in which the process id is valid, such as `pid:[4026531836]`.
    namespace: &'b str,
    pid: &'b str,
    /// Time of the start, in clock ticks since the boot (`proc(5)`, field 22 of `stat`).
    start: &'b str,
    /// The user. A system may hide the processes of other users (`hidepid` in `proc(5)`, `ProtectProc=` of systemd).
    user: &'b str,
}

/// The birth of this process, as one text. Empty if the system does not tell.
pub(crate) fn own() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let pid = std::process::id().to_string();
    let (Seen::Process(_, start), Ok(this)) = (look(&pid), fs::metadata("/proc/self")) else { return String::new() };
    format!("{} {} {pid} {start} {}", boot.trim(), namespace.display(), this.uid())
}

/// True if the process of this birth is known to have ended. False if it runs, or if nobody here can know.
pub(crate) fn has_ended(birth: &str, own: &str) -> bool {
    let (Some(birth), Some(own)) = (read(birth), read(own)) else { return false };
    if (birth.boot, birth.namespace) != (own.boot, own.namespace) {
        return false;
    }
    match look(birth.pid) {
        // A zombie has ended, and waits for its parent only. A later process may have the same id.
        Seen::Process(state, start) => matches!(state, 'Z' | 'X') || start != birth.start,
        // Processes of the same user are never hidden; those of others are not if the first process can be seen.
        Seen::Nothing => birth.user == own.user || matches!(look("1"), Seen::Process(..)),
        Seen::Unknown => false,
    }
}

fn read(birth: &str) -> Option<Birth<'_>> {
    let mut words = birth.split(' ');
    let mut word = || words.next();
    let birth = Birth { boot: word()?, namespace: word()?, pid: word()?, start: word()?, user: word()? };
    let is_whole = !birth.boot.is_empty() && !birth.namespace.is_empty() && words.next().is_none();
    is_whole.then_some(birth)
}

/// What the system tells of a process id.
enum Seen {
    /// There is a process, in this state and with this time of its start.
    Process(char, String),
    /// There is none, or it is hidden.
    Nothing,
    /// The system does not tell.
    Unknown,
}

fn look(pid: &str) -> Seen {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => read_stat(&stat).map_or(Seen::Unknown, |(state, start)| Seen::Process(state, start)),
        Err(error) if error.kind() == ErrorKind::NotFound => Seen::Nothing,
        Err(_) => Seen::Unknown,
    }
}

fn read_stat(stat: &str) -> Option<(char, String)> {
    // The name, in parentheses, may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_of_this_machine_that_is_gone_is_known_to_have_ended() {
        let own = own();
        let words: Vec<&str> = own.split(' ').collect();
        let [boot, namespace, pid, start, user] = words[..] else { panic!("{own:?}") };
        let birth =
            |boot: &str, namespace: &str, pid: &str, start: &str| format!("{boot} {namespace} {pid} {start} {user}");
        assert!(!has_ended(&own, &own), "this process runs");
        assert!(has_ended(&birth(boot, namespace, pid, "1"), &own), "a former process of the same id");
        assert!(has_ended(&birth(boot, namespace, "99999999", start), &own), "there is no such process");
        assert!(!has_ended(&birth("other", namespace, "99999999", start), &own), "another machine");
        assert!(!has_ended(&birth(boot, "pid:[1]", "99999999", start), &own), "another container");
        assert!(!has_ended("", &own) && !has_ended("a b", &own) && !has_ended(&own, ""), "nobody knows");
    }

    #[test]
    fn a_process_that_has_ended_and_waits_for_its_parent_has_ended() {
        let mut child = std::process::Command::new("true").spawn().expect("`true` is everywhere");
        let pid = child.id().to_string();
        let Seen::Process(_, start) = look(&pid) else { panic!("its parent has not waited for it") };
        while !matches!(look(&pid), Seen::Process('Z', _)) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let own = own();
        let words: Vec<&str> = own.split(' ').collect();
        assert!(has_ended(&format!("{} {} {pid} {start} {}", words[0], words[1], words[4]), &own));
        child.wait().expect("it has ended");
    }
}
