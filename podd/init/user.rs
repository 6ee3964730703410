//! Who the application runs as, looked up in the pod's own files: a static program cannot use the C library's lookup,
//! and the host's users have no meaning here.

use std::fs;
use std::path::Path;

/// A user of the pod.
#[derive(Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory, if /etc/passwd knows one.
    pub home: Option<String>,
}

/// Finds `USER[:GROUP[:SUPPLEMENTARY,...]]` in `etc/passwd` and `etc/group`; each part is a name or a number, and
/// numbers need no entry. As in other container tools, a user without GROUP gets all its groups, and one with GROUP
/// only those that are named.
pub fn find(wanted: &str, etc: &Path) -> Result<User, String> {
    let read = |name: &str| String::from_utf8_lossy(&fs::read(etc.join(name)).unwrap_or_default()).into_owned();
    let (passwd, group) = (read("passwd"), read("group"));
    let mut parts = wanted.splitn(3, ':');
    let user = parts.next().filter(|user| !user.is_empty()).unwrap_or("0");
    let (group_wanted, supplementary) = (parts.next().filter(|name| !name.is_empty()), parts.next());

    let entry = entries(&passwd, 6)
        .find(|entry| entry[0] == user || number(user).is_some_and(|uid| number(entry[2]) == Some(uid)));
    let uid = entry.as_ref().map_or(number(user), |entry| number(entry[2]));
    let uid = uid.ok_or_else(|| format!("no user {user:?} in the pod's /etc/passwd"))?;
    let gid = match group_wanted {
        Some(name) => find_group(name, &group)?,
        None => entry.as_ref().and_then(|entry| number(entry[3])).unwrap_or(0),
    };
    let groups = match (supplementary, group_wanted, &entry) {
        (Some(names), ..) => names
            .split(',')
            .filter(|name| !name.is_empty())
            .map(|name| find_group(name, &group))
            .collect::<Result<_, _>>()?,
        (None, None, Some(entry)) => memberships(entry[0], &group),
        _ => Vec::new(),
    };
    let home = entry.map(|entry| entry[5].to_string()).filter(|home| !home.is_empty());
    Ok(User { uid, gid, groups, home })
}

fn find_group(name: &str, group: &str) -> Result<u32, String> {
    let entry = entries(group, 3).find(|entry| entry[0] == name);
    entry
        .map_or(number(name), |entry| number(entry[2]))
        .ok_or_else(|| format!("no group {name:?} in the pod's /etc/group"))
}

fn memberships(user: &str, group: &str) -> Vec<u32> {
    let mine = entries(group, 4).filter(|entry| entry[3].split(',').any(|member| member == user));
    mine.filter_map(|entry| number(entry[2])).collect()
}

/// Lines with at least this many fields; others are comments or damage.
fn entries(file: &str, fields: usize) -> impl Iterator<Item = Vec<&str>> {
    file.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(move |entry| entry.len() >= fields)
}

/// The last number means "leave it as it is" to the kernel.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "# users\nroot:x:0:0:root:/root:/bin/sh\n\nweb:x:33:33:web:/var/www:/sbin/nologin\nbroken:x\nhigh:x:4294967295:1::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:\nlogs:x:4:web,root\nssl:x:101:web\nwebs:x:102:webs\n";

    fn find_in(wanted: &str, passwd: &str, group: &str) -> Result<User, String> {
        let etc =
            std::env::temp_dir().join(format!("init-user-{}-{:?}", std::process::id(), std::thread::current().id()));
        fs::create_dir_all(&etc).expect("folder");
        fs::write(etc.join("passwd"), passwd).expect("passwd");
        fs::write(etc.join("group"), group).expect("group");
        let user = find(wanted, &etc);
        fs::remove_dir_all(etc).expect("remove");
        user
    }

    fn ids(wanted: &str) -> (u32, u32, Vec<u32>) {
        let user = find_in(wanted, PASSWD, GROUP).expect(wanted);
        (user.uid, user.gid, user.groups)
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(ids("web"), (33, 33, vec![4, 101]));
        assert_eq!(ids("33"), (33, 33, vec![4, 101]));
        assert_eq!(ids("web:logs"), (33, 4, vec![]));
        assert_eq!(ids("33:4"), (33, 4, vec![]));
        assert_eq!(ids("web:logs:ssl,7"), (33, 4, vec![101, 7]));
        assert_eq!(ids("web:"), (33, 33, vec![4, 101]));
        assert_eq!(ids(""), (0, 0, vec![4]));
        assert_eq!(ids("1000"), (1000, 0, vec![]));
        assert_eq!(ids("1000:1000"), (1000, 1000, vec![]));
    }

    #[test]
    fn unknown_or_impossible_ones_are_errors() {
        for wanted in
            ["nobody", "web:nogroup", "web:www:nogroup", "4294967295", "high", "broken", "-1", "web:4294967295"]
        {
            assert!(find_in(wanted, PASSWD, GROUP).is_err(), "{wanted}");
        }
    }

    #[test]
    fn numbers_need_no_files() {
        let user = find("5:6", Path::new("/nonexistent")).expect("numbers");
        assert_eq!(user, User { uid: 5, gid: 6, groups: vec![], home: None });
        assert!(find("root", Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn home_is_the_users() {
        assert_eq!(find_in("web", PASSWD, GROUP).expect("web").home.as_deref(), Some("/var/www"));
    }
}
