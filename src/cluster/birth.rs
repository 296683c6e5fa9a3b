//! Tells that another process of the same machine has ended, so that a program that was killed and starts again need
//! not wait until its former lease runs out.

use std::fs;

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
}

/// The birth of this process, as one text. Empty if the system does not tell.
pub(crate) fn own() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let pid = std::process::id().to_string();
    let Some((_, start)) = state(&pid) else { return String::new() };
    format!("{} {} {pid} {start}", boot.trim(), namespace.display())
}

/// True if the process of this birth is known to have ended. False if it runs, or if nobody here can know.
pub(crate) fn has_ended(birth: &str, own: &str) -> bool {
    let (Some(birth), Some(own)) = (read(birth), read(own)) else { return false };
    if (birth.boot, birth.namespace) != (own.boot, own.namespace) {
        return false;
    }
    // A zombie has ended, and waits for its parent only. A later process may have the same id.
    state(birth.pid).is_none_or(|(state, start)| matches!(state, 'Z' | 'X') || start != birth.start)
}

fn read(birth: &str) -> Option<Birth<'_>> {
    let mut words = birth.split(' ');
    let birth = Birth { boot: words.next()?, namespace: words.next()?, pid: words.next()?, start: words.next()? };
    let is_whole = !birth.boot.is_empty() && !birth.namespace.is_empty() && words.next().is_none();
    is_whole.then_some(birth)
}

/// State and start of a process. `None` if there is no such process.
fn state(pid: &str) -> Option<(char, String)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
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
        let [boot, namespace, pid, start] = words[..] else { panic!("{own:?}") };
        let birth = |boot: &str, namespace: &str, pid: &str, start: &str| format!("{boot} {namespace} {pid} {start}");
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
        let (_, start) = state(&pid).expect("its parent has not waited for it");
        while state(&pid).is_some_and(|(state, _)| state != 'Z') {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let own = own();
        let words: Vec<&str> = own.split(' ').collect();
        assert!(has_ended(&format!("{} {} {pid} {start}", words[0], words[1]), &own));
        child.wait().expect("it has ended");
    }
}
