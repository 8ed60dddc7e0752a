//! Users, passwords and permissions of a real etcd.

use std::{fs, path::PathBuf};

use etcd_client::{Client, ConnectOptions, Permission};
use stoker_shared::discovery::etcd::{self, EtcdAuth, EtcdConfig};
use tempfile::TempDir;

use crate::{
    Etcd, LONG, PREFIX, SHORT, announce_with, config,
    logs::Logs,
    view::{View, client, put},
};

const USER: &str = "stoker";
const PASSWORD: &str = "correct-horse-1";
const OTHER: &str = "battery-staple-2";
const ROOT: &str = "root-password-3";

/// Adds the users root and stoker, and a role without permissions. Authentication stays disabled.
async fn add_users(etcd: &Etcd) -> Client {
    let mut client = client(etcd).await;
    client.user_add("root", ROOT, None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.user_add(USER, PASSWORD, None).await.unwrap();
    client.role_add("workers").await.unwrap();
    client
}

async fn grant(client: &mut Client, permission: Permission) {
    client.role_grant_permission("workers", permission.with_prefix()).await.unwrap();
    client.user_grant_role(USER, "workers").await.unwrap();
}

async fn root(etcd: &Etcd) -> Client {
    let options = ConnectOptions::new().with_user("root", ROOT);
    Client::connect([etcd.url()], Some(options)).await.unwrap()
}

/// Enables authentication with a user `stoker` that may read and write the keys of workers. Returns
/// a client of root.
async fn with_users(etcd: &Etcd) -> Client {
    let mut client = add_users(etcd).await;
    grant(&mut client, Permission::read_write(PREFIX)).await;
    client.auth_enable().await.unwrap();
    root(etcd).await
}

fn with_password(etcd: &Etcd, password: &str) -> EtcdConfig {
    let auth = EtcdAuth {
        etcd_user: Some(USER.into()),
        etcd_password: Some(password.to_owned().into()),
        etcd_password_file: None,
    };
    EtcdConfig { auth, ..config(etcd) }
}

/// A password file.
struct PasswordFile(TempDir);

impl PasswordFile {
    fn new(password: &str) -> Self {
        let file = Self(tempfile::tempdir().unwrap());
        file.write(password);
        file
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("password")
    }

    /// Replaces the file atomically, since a partly written file would be a wrong password.
    fn write(&self, password: &str) {
        let next = self.0.path().join("next");
        fs::write(&next, format!("{password}\nthe rest is not read\n")).unwrap();
        fs::rename(next, self.path()).unwrap();
    }

    fn config(&self, etcd: &Etcd) -> EtcdConfig {
        let auth = EtcdAuth {
            etcd_user: Some(USER.into()),
            etcd_password: None,
            etcd_password_file: Some(self.path()),
        };
        EtcdConfig { auth, ..config(etcd) }
    }
}

fn has_a(view: &View) -> bool {
    view.has("a", "host:1")
}

#[tokio::test]
async fn the_right_password_is_accepted() {
    for etcd in Etcd::each() {
        let logs = Logs::collect();
        with_users(&etcd).await;
        let file = PasswordFile::new(PASSWORD);
        for mut config in [with_password(&etcd, PASSWORD), file.config(&etcd)] {
            config.check(&Default::default()).unwrap();
            let worker = announce_with(config.clone(), "a", "host:1", LONG);
            let mut view = View::new(etcd::watch(config));
            view.until(|v| has_a(v) && v.source_error.is_none()).await;
            // The user may revoke the lease.
            worker.withdraw().await;
            view.until(View::is_empty).await;
        }
        assert_eq!(logs.lines(&["WARN"]), Vec::<String>::new());
        assert!(!logs.text().contains(PASSWORD));
    }
}

#[tokio::test]
async fn a_wrong_password_is_reported_but_not_displayed_until_it_is_corrected() {
    for etcd in Etcd::each() {
        let logs = Logs::collect();
        with_users(&etcd).await;
        let file = PasswordFile::new(OTHER);
        let config = file.config(&etcd);
        let _worker = announce_with(config.clone(), "a", "host:1", LONG);
        let mut view = View::new(etcd::watch(config.clone()));
        let expected = [etcd.url(), "refuses the user stoker: ", "authentication failed"];
        view.until(|v| v.error_contains(&expected)).await;
        logs.until(&expected[1..]).await;
        file.write(PASSWORD);
        view.until(|v| has_a(v) && v.source_error.is_none()).await;
        for text in [logs.text(), format!("{view:?} {config:?}")] {
            assert!(!text.contains(OTHER) && !text.contains(PASSWORD), "{text}");
        }
    }
}

#[tokio::test]
async fn a_missing_password_file_is_reported_until_it_exists() {
    for etcd in Etcd::each() {
        with_users(&etcd).await;
        let file = PasswordFile::new(PASSWORD);
        let config = file.config(&etcd);
        fs::remove_file(file.path()).unwrap();
        let path = file.path().display().to_string();
        let mut view = View::new(etcd::watch(config.clone()));
        view.until(|v| v.error_contains(&["--etcd-password-file", &path, "No such file"])).await;
        let _worker = announce_with(config, "a", "host:1", LONG);
        file.write(PASSWORD);
        view.until(|v| has_a(v) && v.source_error.is_none()).await;
    }
}

#[tokio::test]
async fn a_password_may_change_while_a_worker_runs() {
    for etcd in Etcd::each() {
        let logs = Logs::collect();
        let mut root = with_users(&etcd).await;
        let file = PasswordFile::new(PASSWORD);
        let _worker = announce_with(file.config(&etcd), "a", "host:1", SHORT);
        // Watches as another user, whose password does not change.
        let mut view = View::new(etcd::watch(EtcdConfig {
            auth: EtcdAuth { etcd_user: Some("root".into()), ..with_password(&etcd, ROOT).auth },
            ..config(&etcd)
        }));
        view.until(has_a).await;
        root.user_change_password(USER, OTHER).await.unwrap();
        // The change of the password invalidates the token, and then the lease expires.
        view.until(View::is_empty).await;
        logs.until(&["refuses the user stoker: "]).await;
        file.write(OTHER);
        view.until(has_a).await;
        assert!(![PASSWORD, OTHER, ROOT].iter().any(|password| logs.text().contains(password)));
    }
}

#[tokio::test]
async fn authentication_may_be_enabled_and_disabled_while_a_worker_runs() {
    for etcd in Etcd::each() {
        let mut client = add_users(&etcd).await;
        grant(&mut client, Permission::read_write(PREFIX)).await;
        let config = with_password(&etcd, PASSWORD);
        let _worker = announce_with(config.clone(), "a", "host:1", SHORT);
        let mut view = View::new(etcd::watch(config.clone()));
        view.until(has_a).await;
        client.auth_enable().await.unwrap();
        let mut root = root(&etcd).await;
        // The worker must now write as its user.
        root.put(format!("{PREFIX}a"), "garbage", None).await.unwrap();
        View::new(etcd::watch(config.clone())).until(has_a).await;
        root.auth_disable().await.unwrap();
        put(&etcd, &format!("{PREFIX}a"), "garbage").await;
        View::new(etcd::watch(config)).until(has_a).await;
    }
}

#[tokio::test]
async fn the_missing_option_is_named_for_a_client_without_a_user() {
    for etcd in Etcd::each() {
        with_users(&etcd).await;
        let mut view = View::new(etcd::watch(config(&etcd)));
        view.until(|v| v.error_contains(&[etcd.url(), "without a user", "--etcd-user"])).await;
    }
}

#[tokio::test]
async fn a_missing_permission_is_reported() {
    for etcd in Etcd::each() {
        let logs = Logs::collect();
        let mut client = add_users(&etcd).await;
        client.auth_enable().await.unwrap();
        let mut root = root(&etcd).await;
        let config = with_password(&etcd, PASSWORD);
        let mut view = View::new(etcd::watch(config.clone()));
        let refusal = "refuses the user stoker access to the keys under /stoker/test/workers/: ";
        view.until(|v| v.error_contains(&[etcd.url(), refusal, "permission denied"])).await;
        // Read permission is enough for a router.
        grant(&mut root, Permission::read(PREFIX)).await;
        view.until(|v| v.error_contains(&["has no key under"])).await;
        let before = logs.lines(&["WARN", refusal]).len();
        let _worker = announce_with(config, "a", "host:1", LONG);
        logs.until_lines(before + 1, &["WARN", refusal]).await;
        grant(&mut root, Permission::read_write(PREFIX)).await;
        view.until(|v| has_a(v) && v.source_error.is_none()).await;
        assert!(!logs.text().contains(PASSWORD));
    }
}
