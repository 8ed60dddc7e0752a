//! The file of tenants and API keys.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    path::PathBuf,
    sync::Arc,
};

use serde::Deserialize;
use stoker_shared::{names::label, validate::MAX_PRIORITY};

use super::{KeyHash, MAX_TENANT_BYTES};

/// Maximum number of keys in a file.
const MAX_KEYS: usize = 100_000;
/// Maximum number of tenants with metrics of their own.
const MAX_LABELS: usize = 1_000;
/// Label of all other tenants.
const OTHERS: &str = "(other)";
/// Highest rate, so that sums stay exact.
const MAX_RATE: u64 = 1 << 40;

/// Why a file of keys is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--api-keys {}: {why}", path.display())]
pub struct KeyFileError {
    /// Path of the file.
    pub path: PathBuf,
    /// What is wrong with it, and what to do.
    pub why: String,
}

/// What a tenant may do.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TenantPolicy {
    /// Names or aliases of models, where a `*` at the end stands for any characters; all without.
    pub models: Option<Vec<String>>,
    /// Requests a minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens a minute, of prompts and completions.
    pub tokens_per_minute: Option<u64>,
    /// Streams at a time.
    pub max_concurrent_streams: Option<u32>,
    /// Highest `max_tokens` of a request.
    pub max_tokens: Option<u32>,
    /// Most urgent priority of a request, from 0 to 1000.
    pub priority: Option<u32>,
}

impl TenantPolicy {
    /// Whether the tenant may use the model with this name or alias.
    pub(crate) fn allows(&self, model: &str) -> bool {
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => model.starts_with(beginning),
            None => pattern == model,
        };
        self.models.as_ref().is_none_or(|models| models.iter().any(matches))
    }

    fn check(&self) -> Result<(), String> {
        let zero = "is 0, with which no request is possible; leave it out for no limit";
        let rates = [
            ("requests-per-minute", self.requests_per_minute),
            ("tokens-per-minute", self.tokens_per_minute),
            ("max-concurrent-streams", self.max_concurrent_streams.map(u64::from)),
            ("max-tokens", self.max_tokens.map(u64::from)),
        ];
        for (name, limit) in rates {
            match limit {
                Some(0) => return Err(format!("{name} {zero}")),
                Some(limit) if limit > MAX_RATE => {
                    return Err(format!("{name} is {limit}; at most {MAX_RATE}"));
                }
                _ => {}
            }
        }
        if let Some(priority) = self.priority.filter(|priority| *priority > MAX_PRIORITY) {
            return Err(format!(
                "priority is {priority}; from 0, the most urgent, to {MAX_PRIORITY}"
            ));
        }
        if self.models.as_ref().is_some_and(Vec::is_empty) {
            return Err("models is empty, which allows none; leave it out to allow all".into());
        }
        Ok(())
    }
}

/// A tenant of the file.
#[derive(Debug, PartialEq)]
pub(crate) struct Tenant {
    pub(crate) name: Arc<str>,
    /// Value of the label `tenant`.
    pub(crate) label: Arc<str>,
    pub(crate) policy: TenantPolicy,
}

/// A key of the file, without the key itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct KeyEntry {
    /// Name of the key, which is no secret.
    pub id: String,
    /// The tenant that it belongs to.
    pub tenant: String,
    /// SHA-256 of the key.
    pub sha256: String,
    /// Date when it was made.
    #[serde(default)]
    pub created: Option<String>,
    /// What it is for.
    #[serde(default)]
    pub note: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Content {
    #[serde(default)]
    tenants: BTreeMap<String, TenantPolicy>,
    #[serde(default)]
    keys: Vec<KeyEntry>,
}

/// The content of a file: tenants by the hashes of their keys.
#[derive(Default)]
pub struct KeyFile {
    tenants: HashMap<KeyHash, Arc<Tenant>>,
    entries: Vec<KeyEntry>,
}

impl KeyFile {
    /// Reads the content of a file. Errors say where it is wrong, and what to do.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Content { tenants, keys } =
            toml::from_str(text).map_err(|error| format!("line {}", describe(text, &error)))?;
        if keys.len() > MAX_KEYS {
            return Err(format!("has {} keys; at most {MAX_KEYS}", keys.len()));
        }
        let mut named = HashMap::new();
        for (number, (name, policy)) in tenants.into_iter().enumerate() {
            check_name(&name)?;
            policy.check().map_err(|why| format!("tenant {name:?}: {why}"))?;
            let name: Arc<str> = name.into();
            let label = if number < MAX_LABELS { Arc::clone(&name) } else { OTHERS.into() };
            named.insert(Arc::clone(&name), Arc::new(Tenant { name, label, policy }));
        }
        let (mut ids, mut by_hash) = (HashSet::new(), HashMap::new());
        for key in &keys {
            let KeyEntry { id, tenant, sha256, .. } = key;
            if id.is_empty() || id.len() > MAX_TENANT_BYTES || id.chars().any(char::is_control) {
                return Err(format!("the key {id:?} needs an id of 1 to {MAX_TENANT_BYTES} bytes"));
            }
            if !ids.insert(id.as_str()) {
                return Err(format!("the id {id:?} occurs twice; remove one of the two keys"));
            }
            let hash = KeyHash::parse(sha256).map_err(|why| format!("key {id:?}: sha256 {why}"))?;
            let Some(owner) = named.get(tenant.as_str()) else {
                return Err(format!(
                    "key {id:?}: there is no tenant {tenant:?}; add a section [tenants.{tenant}]"
                ));
            };
            if by_hash.insert(hash, Arc::clone(owner)).is_some() {
                return Err(format!(
                    "key {id:?} is the same as another one; remove one of the two"
                ));
            }
        }
        Ok(Self { tenants: by_hash, entries: keys })
    }

    /// Returns the keys in the order of the file.
    pub fn entries(&self) -> &[KeyEntry] {
        &self.entries
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the tenant with this key.
    pub(crate) fn tenant(&self, key: &KeyHash) -> Option<&Arc<Tenant>> {
        self.tenants.get(key)
    }

    /// Returns the labels of all tenants with a key.
    pub(crate) fn labels(&self) -> impl Iterator<Item = &Arc<str>> {
        self.tenants.values().map(|tenant| &tenant.label)
    }
}

impl fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyFile({} keys)", self.entries.len())
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let usable = (1..=MAX_TENANT_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic())
        && name != OTHERS
        && name != label::UNKNOWN_MODEL;
    usable.then_some(()).ok_or_else(|| {
        format!(
            "tenant {name:?}: a name has 1 to {MAX_TENANT_BYTES} printable ASCII characters, and no \
             spaces"
        )
    })
}

/// Returns the line of an error, and its message without the text of the file.
fn describe(text: &str, error: &toml::de::Error) -> String {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1;
    format!("{line}: {}", error.message().trim_end())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn key(id: &str, tenant: &str, key: &str) -> String {
        let hash = KeyHash::of(key);
        format!("[[keys]]\nid = '{id}'\ntenant = '{tenant}'\nsha256 = '{hash}'\n")
    }

    #[test]
    fn a_key_leads_to_its_tenant() {
        let text = format!(
            "[tenants.acme]\nmodels = ['llama-*', 'gpt']\ntokens-per-minute = 5\npriority = 0\n\
             [tenants.other]\n{}{}{}",
            key("a", "acme", "one"),
            key("b", "acme", "two"),
            key("c", "other", "three")
        );
        let file = KeyFile::parse(&text).unwrap();
        let tenant = |key: &str| file.tenant(&KeyHash::of(key));
        let acme = tenant("one").unwrap();
        assert_eq!((&*acme.name, &*acme.label), ("acme", "acme"));
        assert_eq!(acme.policy.tokens_per_minute, Some(5));
        assert_eq!(tenant("two"), Some(acme));
        assert_eq!(&*tenant("three").unwrap().name, "other");
        assert_eq!(tenant("four"), None);
        for (model, allowed) in
            [("llama-7b", true), ("llama", false), ("gpt", true), ("gpt2", false)]
        {
            assert_eq!(acme.policy.allows(model), allowed, "{model}");
        }
        assert!(tenant("three").unwrap().policy.allows("anything"));
    }

    #[test]
    fn wrong_files_are_refused_with_the_fix() {
        let tenant = "[tenants.a]\n";
        for (text, why) in [
            (format!("{tenant}{}{}", key("x", "a", "1"), key("x", "a", "2")), "\"x\" occurs twice"),
            (
                format!("{tenant}{}{}", key("x", "a", "1"), key("y", "a", "1")),
                "the same as another",
            ),
            (key("x", "b", "1"), "no tenant \"b\"; add a section [tenants.b]"),
            (format!("{tenant}[[keys]]\nid='x'\ntenant='a'\nsha256='sk-stoker-x'\n"), "SHA-256"),
            (format!("{tenant}[[keys]]\nid='x'\ntenant='a'\n"), "missing field `sha256`"),
            (format!("{tenant}tokens-per-minute = 0\n"), "tokens-per-minute is 0"),
            (format!("{tenant}tokens_per_minute = 5\n"), "line 2: unknown field"),
            (format!("{tenant}priority = 1001\n"), "priority is 1001"),
            (format!("{tenant}models = []\n"), "leave it out to allow all"),
            (format!("{tenant}max-tokens = -1\n"), "line 2"),
            (format!("{tenant}{tenant}"), "line 2: duplicate key"),
            ("[tenants.'a b']\n".into(), "no spaces"),
            ("tenants = 5".into(), "line 1"),
            ("[tenants".into(), "line 1"),
        ] {
            let error = KeyFile::parse(&text).unwrap_err();
            assert!(error.contains(why), "{why:?} is not in {error}");
        }
        assert!(KeyFile::parse("").unwrap().is_empty());
    }

    #[test]
    fn tenants_beyond_the_first_share_a_label() {
        let tenants: String = (0..=MAX_LABELS).map(|i| format!("[tenants.t{i:05}]\n")).collect();
        let text = format!("{tenants}{}{}", key("a", "t00000", "1"), key("b", "t01000", "2"));
        let file = KeyFile::parse(&text).unwrap();
        let label = |key: &str| file.tenant(&KeyHash::of(key)).unwrap().label.to_string();
        assert_eq!((label("1"), label("2")), ("t00000".to_owned(), OTHERS.to_owned()));
    }
}
