//! A value that is never displayed.

use std::{convert::Infallible, fmt, str::FromStr};

/// Text that `Debug`, `Display` and `--print-config` show as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Returns the text itself. Call it only where the secret is used.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::{env, fs};

    use clap::{CommandFactory, FromArgMatches, Parser};

    use super::{
        super::{load, print},
        *,
    };

    #[derive(Debug, Parser)]
    struct Cli {
        /// Test option with a variable that every process has
        #[arg(long, env = "PATH", hide_env_values = true)]
        variable: Option<Secret>,
        #[cfg(feature = "etcd")]
        #[command(flatten)]
        etcd: crate::discovery::etcd::EtcdConfig,
    }

    /// Returns the printed configuration, or the error, of a file and flags.
    fn output(file: &str, flags: &[&str]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stoker.toml");
        fs::write(&path, file).unwrap();
        let config = ["cli", "--config", path.to_str().unwrap()];
        match load(Cli::command(), [&config, flags].concat()) {
            Ok(loaded) => {
                let cli = Cli::from_arg_matches(&loaded.matches).unwrap();
                format!("{}{cli:?}", print::toml(&loaded))
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_secret_from_the_environment_is_not_displayed() {
        let path = env::var("PATH").unwrap();
        let printed = output("", &[]);
        let expected = "# from the environment, PATH, not shown\n# variable = \"***\"\n";
        assert!(printed.contains(expected) && printed.contains("Some(***)"), "{printed}");
        let help = output("", &["--help"]);
        assert!(help.contains("[env: PATH]"), "{help}");
        for text in [printed, help] {
            assert!(!text.contains(&path), "{text}");
        }
        assert_eq!(Secret::from(path).to_string(), "***");
    }

    #[cfg(feature = "etcd")]
    #[test]
    fn passwords_of_etcd_are_not_displayed() {
        let (user, password) = ("etcd-user = 'me'\n", "etcd-password = 'hidden'\n");
        let url = "http://me:hidden@h:1";
        for (file, flags, expected) in [
            (
                format!("{user}{password}"),
                &[][..],
                "stoker.toml:2, not shown\n# etcd-password = \"***\"",
            ),
            (String::new(), &["--etcd-password", "hidden"], "--etcd-password, not shown\n"),
            (password.into(), &["--help"], "--etcd-password"),
            (password.into(), &["--etcd-password-file", "/x"], "# etcd-password = \"\"\n"),
            (
                String::new(),
                &["--etcd-password=hidden", "--etcd-password-file=x"],
                "cannot be used",
            ),
            (password.into(), &["--etcd-prefix", ""], "--etcd-prefix"),
            ("etcd-password = hidden".into(), &[], "stoker.toml:1: "),
            ("etcd-password = ['hidden']".into(), &[], "etcd-password is an array"),
            ("etcd-pasword = 'hidden'".into(), &[], "unknown key `etcd-pasword`"),
            (format!("etcd = '{url}'"), &[], "etcd = http://***@h:1: "),
            (format!("etcd = ['http://a:1', '{url}']"), &[], "etcd = http://***@h:1: "),
            (String::new(), &["--etcd", url], "'http://***@h:1'"),
        ] {
            let output = output(&file, flags);
            assert!(output.contains(expected), "{expected:?} is not in {output}");
            assert!(!output.contains("hidden"), "{output}");
        }
    }

    #[cfg(feature = "etcd")]
    #[test]
    fn a_file_with_two_passwords_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stoker.toml");
        let keys = "etcd-user = 'me'\netcd-password = 'a'\netcd-password-file = '/x'\n";
        fs::write(&path, keys).unwrap();
        let loaded = load(Cli::command(), ["cli", "--config", path.to_str().unwrap()]).unwrap();
        let error = Cli::from_arg_matches(&loaded.matches)
            .unwrap()
            .etcd
            .check(&Default::default())
            .unwrap_err();
        assert!(error.to_string().contains("are both set"), "{error}");
    }
}
