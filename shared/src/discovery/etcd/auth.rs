//! The etcd user that workers and routers authenticate as.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use clap::Args;

use crate::config::Secret;

/// Maximum number of bytes read from a password file, so that a large file without newlines is not
/// read to its end.
const MAX_LINE: u64 = 64 * 1024;

/// The etcd user to authenticate as, if any.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct EtcdAuth {
    /// User to authenticate to etcd as. Workers need a role with readwrite permission on the keys
    /// under --etcd-prefix, routers one with read permission
    #[arg(long, env = "STOKER_ETCD_USER", value_name = "NAME", help_heading = "Discovery")]
    pub etcd_user: Option<String>,

    /// Password of --etcd-user. A command line is visible to other users of the machine: prefer the
    /// environment variable or --etcd-password-file
    #[arg(
        long,
        env = "STOKER_ETCD_PASSWORD",
        hide_env_values = true,
        hide_default_value = true,
        conflicts_with = "etcd_password_file",
        value_name = "PASSWORD",
        help_heading = "Discovery"
    )]
    pub etcd_password: Option<Secret>,

    /// File whose first line is the password of --etcd-user. It is read again for every connection,
    /// so that the password can be changed without a restart
    #[arg(
        long,
        env = "STOKER_ETCD_PASSWORD_FILE",
        value_name = "FILE",
        help_heading = "Discovery"
    )]
    pub etcd_password_file: Option<PathBuf>,
}

/// Why the user to authenticate as cannot be determined.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// A user without a password.
    #[error(
        "--etcd-user {0} needs a password: add --etcd-password-file FILE, or set STOKER_ETCD_PASSWORD"
    )]
    NoPassword(String),
    /// A password without a user.
    #[error("{0} needs --etcd-user NAME (or STOKER_ETCD_USER)")]
    NoUser(&'static str),
    /// Two passwords.
    #[error("--etcd-password and --etcd-password-file are both set: use one of them")]
    TwoPasswords,
    /// A user without a name.
    #[error("--etcd-user is empty")]
    EmptyUser,
    /// An empty password, which etcd refuses.
    #[error("--etcd-password is empty")]
    EmptyPassword,
    /// A password file without a password.
    #[error("--etcd-password-file {}: its first line, the password, is empty", .0.display())]
    EmptyFile(PathBuf),
    /// A password file that cannot be read.
    #[error("--etcd-password-file {}: {cause}", path.display())]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        cause: io::Error,
    },
}

/// Source of the password.
#[derive(Debug)]
enum Source<'a> {
    Given(&'a Secret),
    File(&'a Path),
}

impl EtcdAuth {
    /// Returns the user and the source of its password, or what is missing. Checked here because
    /// clap does not check conflicts with values of a configuration file.
    fn user(&self) -> Result<Option<(&str, Source<'_>)>, AuthError> {
        let source = match (&self.etcd_password, &self.etcd_password_file) {
            (Some(_), Some(_)) => return Err(AuthError::TwoPasswords),
            (Some(password), None) if password.expose().is_empty() => {
                return Err(AuthError::EmptyPassword);
            }
            (Some(password), None) => Some(Source::Given(password)),
            (None, Some(path)) => Some(Source::File(path)),
            (None, None) => None,
        };
        match (self.etcd_user.as_deref(), source) {
            (None, None) => Ok(None),
            (None, Some(Source::Given(_))) => Err(AuthError::NoUser("--etcd-password")),
            (None, Some(Source::File(_))) => Err(AuthError::NoUser("--etcd-password-file")),
            (Some(""), _) => Err(AuthError::EmptyUser),
            (Some(user), None) => Err(AuthError::NoPassword(user.to_owned())),
            (Some(user), Some(source)) => Ok(Some((user, source))),
        }
    }

    /// Checks that the options are consistent. Reads no file.
    pub(super) fn check(&self) -> Result<(), AuthError> {
        self.user().map(drop)
    }

    /// Returns the user and its current password. Reads the password file.
    pub(super) fn credentials(&self) -> Result<Option<(String, Secret)>, AuthError> {
        let Some((user, source)) = self.user()? else { return Ok(None) };
        let password = match source {
            Source::Given(password) => password.clone(),
            Source::File(path) => first_line(path)?,
        };
        Ok(Some((user.to_owned(), password)))
    }
}

fn first_line(path: &Path) -> Result<Secret, AuthError> {
    let unreadable = |cause| AuthError::Unreadable { path: path.into(), cause };
    // A pipe would yield the password only once.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        let cause = io::Error::other("is no regular file, and is read again for every connection");
        return Err(unreadable(cause));
    }
    let file = File::open(path).map_err(unreadable)?;
    let mut line = String::new();
    BufReader::new(file.take(MAX_LINE)).read_line(&mut line).map_err(unreadable)?;
    match line.trim_end_matches(['\r', '\n']) {
        "" => Err(AuthError::EmptyFile(path.into())),
        password => Ok(Secret::from(password.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::fs;

    use clap::Parser;

    use super::super::EtcdConfig;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        etcd: EtcdConfig,
    }

    const ETCD: &str = "--etcd=http://h:1";
    const USER: &str = "--etcd-user=me";
    const PASSWORD: &str = "--etcd-password=secret";

    fn config(arguments: &[&str]) -> EtcdConfig {
        Cli::try_parse_from([&["program"], arguments].concat()).unwrap().etcd
    }

    fn error(arguments: &[&str]) -> String {
        config(arguments).check(&Default::default()).unwrap_err().to_string()
    }

    #[test]
    fn user_and_password_require_each_other() {
        for valid in [&[][..], &[ETCD], &[ETCD, USER, PASSWORD], &[USER, PASSWORD]] {
            config(valid).check(&Default::default()).unwrap();
        }
        for (invalid, expected) in [
            (&[ETCD, USER][..], "--etcd-user me needs a password: add --etcd-password-file"),
            (&[USER], "--etcd-user me"),
            (&[ETCD, PASSWORD], "--etcd-password needs --etcd-user"),
            (&[ETCD, "--etcd-password-file=/x"], "--etcd-password-file needs --etcd-user"),
            (&[ETCD, "--etcd-user=", PASSWORD], "--etcd-user is empty"),
            (&[ETCD, USER, "--etcd-password="], "--etcd-password is empty"),
        ] {
            let error = error(invalid);
            assert!(error.contains(expected) && !error.contains("secret"), "{invalid:?}: {error}");
        }
        let mut both = config(&[ETCD, USER, PASSWORD]);
        both.auth.etcd_password_file = Some("/x".into());
        let error = both.check(&Default::default()).unwrap_err().to_string();
        assert!(error.contains("--etcd-password and --etcd-password-file"), "{error}");
    }

    #[test]
    fn the_password_is_the_first_line_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let flag = format!("--etcd-password-file={}", path.display());
        let arguments = [ETCD, USER, &flag];
        let missing = error(&arguments);
        assert!(missing.contains(path.to_str().unwrap()) && missing.contains("No such file"));
        config(&arguments[1..])
            .check(&Default::default())
            .expect("the file is not read without --etcd");
        for content in ["secret", "secret\n", "secret\r\n", "secret\nmore", "secret\n\n"] {
            fs::write(&path, content).unwrap();
            let (user, password) = config(&arguments).auth.credentials().unwrap().unwrap();
            assert_eq!((&*user, password.expose()), ("me", "secret"), "{content:?}");
        }
        let device = error(&[ETCD, USER, "--etcd-password-file=/dev/null"]);
        assert!(device.contains("/dev/null: is no regular file"), "{device}");
        fs::write(&path, " a b \n").unwrap();
        let (_, spaces) = config(&arguments).auth.credentials().unwrap().unwrap();
        assert_eq!(spaces.expose(), " a b ");
        for (content, why) in
            [(&b""[..], "is empty"), (b"\nsecret", "is empty"), (b"secret\xff", "valid UTF-8")]
        {
            fs::write(&path, content).unwrap();
            let error = error(&arguments);
            assert!(error.contains("--etcd-password-file") && error.contains(why), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
