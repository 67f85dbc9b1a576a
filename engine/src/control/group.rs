//! Groups of the system, from /etc/group: who may read over the control socket.

/// The group's number.
pub(super) fn id(name: &str) -> Option<u32> {
    id_in(&std::fs::read_to_string("/etc/group").ok()?, name)
}

/// Whether `uid` is listed as a member of group `gid`. (A primary group is in the peer's credentials.)
pub(super) fn has_member(gid: u32, uid: u32) -> bool {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    member_in(&read("/etc/group"), &read("/etc/passwd"), gid, uid)
}

fn id_in(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

fn member_in(groups: &str, users: &str, gid: u32, uid: u32) -> bool {
    let number =
        |line: &str, number: u32| line.split(':').nth(2).and_then(|field| field.parse().ok()) == Some(number);
    let Some(user) = users.lines().find(|line| number(line, uid)).and_then(|line| line.split(':').next())
    else {
        return false;
    };
    groups
        .lines()
        .filter(|line| number(line, gid))
        .filter_map(|line| line.split(':').nth(3))
        .any(|members| members.split(',').any(|member| member == user))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_databases() {
        let groups = "root:x:0:\nadit:x:990:alice,bob\n# odd line\nempty:x:991:\n";
        let users = "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/:/bin/sh\ncarol:x:1001:1001::/:/bin/sh\n";
        assert_eq!(id_in(groups, "adit"), Some(990));
        assert_eq!(id_in(groups, "none"), None);
        assert!(member_in(groups, users, 990, 1000));
        assert!(!member_in(groups, users, 990, 1001));
        assert!(!member_in(groups, users, 991, 1000));
        assert!(!member_in(groups, users, 990, 4242));
    }
}
