//! Priority limits of tenants.

use std::{collections::HashMap, fmt, str::FromStr};

use stoker_proto::v1::GenerateRequest;
use stoker_shared::validate::{self, DEFAULT_PRIORITY, MAX_PRIORITY};

use super::MAX_TENANT_BYTES;

/// Name of the rule for all tenants without a rule of their own.
const OTHERS: &str = "*";

/// A rule: the most urgent priority (smallest number) that requests of a tenant may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantPriority {
    tenant: String,
    limit: u32,
}

impl FromStr for TenantPriority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let example = "write NAME=N, for instance batch=500, or *=N for all other tenants";
        let (tenant, number) = text.rsplit_once('=').ok_or(example)?;
        if tenant.is_empty() || tenant.len() > MAX_TENANT_BYTES {
            return Err(format!("a tenant has a name of 1 to {MAX_TENANT_BYTES} bytes; {example}"));
        }
        if !tenant.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "tenants have names of printable ASCII, without spaces; {example}"
            ));
        }
        match number.parse() {
            Ok(limit) if limit <= MAX_PRIORITY => Ok(Self { tenant: tenant.to_owned(), limit }),
            _ => Err(format!(
                "{number:?} is not a priority from 0, the most urgent, to {MAX_PRIORITY}; {example}"
            )),
        }
    }
}

impl fmt::Display for TenantPriority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.tenant, self.limit)
    }
}

/// Error for rules that contradict each other or cannot apply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PriorityError {
    /// A tenant has two rules.
    #[error("--tenant-priority {0}: this tenant already has a rule; remove one")]
    DuplicateRule(TenantPriority),
    /// A rule names a tenant, but no header is configured from which tenants are read.
    #[error(
        "--tenant-priority {0} names a tenant, but requests have none without --tenant-header or \
         --api-keys: set one, or use one rule *=N for all requests"
    )]
    NoTenantHeader(TenantPriority),
}

/// All rules. Without a rule, a tenant's requests get at most the default priority, so that a
/// request cannot overtake others merely by setting its priority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Priorities {
    tenants: HashMap<String, u32>,
    others: u32,
}

impl Default for Priorities {
    fn default() -> Self {
        Self { tenants: HashMap::new(), others: DEFAULT_PRIORITY }
    }
}

impl Priorities {
    /// Builds the limits from `rules`. `has_header` is whether a tenant header is configured.
    pub(crate) fn new(rules: &[TenantPriority], has_header: bool) -> Result<Self, PriorityError> {
        let (mut tenants, mut others) = (HashMap::new(), None);
        for rule in rules {
            let before = if rule.tenant == OTHERS {
                others.replace(rule.limit)
            } else if has_header {
                tenants.insert(rule.tenant.clone(), rule.limit)
            } else {
                return Err(PriorityError::NoTenantHeader(rule.clone()));
            };
            if before.is_some() {
                return Err(PriorityError::DuplicateRule(rule.clone()));
            }
        }
        Ok(Self { tenants, others: others.unwrap_or(DEFAULT_PRIORITY) })
    }

    /// Lowers the priority of a request of `tenant` to its limit.
    pub(crate) fn limit(&self, tenant: &str, request: &mut GenerateRequest) {
        Self::lower(self.tenants.get(tenant).copied().unwrap_or(self.others), request);
    }

    /// Lowers the priority of a request to `most_urgent`.
    pub(crate) fn lower(most_urgent: u32, request: &mut GenerateRequest) {
        if validate::priority(request) < most_urgent {
            request.priority = Some(most_urgent);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn rules(rules: &[&str]) -> Vec<TenantPriority> {
        rules.iter().map(|rule| rule.parse().unwrap()).collect()
    }

    #[test]
    fn a_rule_applies_to_its_tenant_and_a_star_to_all_others() {
        let priorities =
            Priorities::new(&rules(&["batch=500", "ops=0", "a=b=7", "*=50"]), true).unwrap();
        let limited = |tenant, priority| {
            let mut request = GenerateRequest { priority, ..Default::default() };
            priorities.limit(tenant, &mut request);
            request.priority
        };
        assert_eq!(limited("batch", Some(3)), Some(500));
        assert_eq!(limited("batch", None), Some(500), "the default priority is limited too");
        assert_eq!(
            limited("batch", Some(700)),
            Some(700),
            "a less urgent priority is always allowed"
        );
        assert_eq!((limited("ops", Some(0)), limited("ops", None)), (Some(0), None));
        assert_eq!((limited("", Some(7)), limited("x", None)), (Some(50), None));
        assert_eq!(limited("a=b", Some(0)), Some(7));
    }

    #[test]
    fn without_a_rule_the_default_priority_is_the_limit() {
        for (priorities, tenant) in [
            (Priorities::default(), ""),
            (Priorities::new(&[], false).unwrap(), ""),
            (Priorities::new(&[], true).unwrap(), "acme"),
            (Priorities::new(&rules(&["ops=0", "batch=500"]), true).unwrap(), "acme"),
        ] {
            for (requested, limited) in [
                (Some(0), Some(100)),
                (Some(99), Some(100)),
                (Some(100), Some(100)),
                (Some(101), Some(101)),
                (Some(1_000), Some(1_000)),
                (None, None),
            ] {
                let mut request = GenerateRequest { priority: requested, ..Default::default() };
                priorities.limit(tenant, &mut request);
                assert_eq!(
                    request.priority, limited,
                    "{requested:?} of {tenant:?} by {priorities:?}"
                );
            }
        }
    }

    #[test]
    fn an_invalid_rule_is_refused_with_the_expected_format() {
        for bad in ["", "batch", "=5", "batch=", "batch=1001", "batch=-1", "a b=5", "batch=5x"] {
            let error = bad.parse::<TenantPriority>().unwrap_err();
            assert!(error.contains("NAME=N"), "{bad:?}: {error}");
        }
        let long = format!("{}=5", "x".repeat(MAX_TENANT_BYTES + 1)).parse::<TenantPriority>();
        assert!(long.unwrap_err().contains("1 to 64 bytes"));
        assert_eq!("batch=5".parse::<TenantPriority>().unwrap().to_string(), "batch=5");
    }

    #[test]
    fn contradicting_rules_are_refused() {
        for twice in [["a=1", "a=2"], ["*=1", "*=1"]] {
            let error = Priorities::new(&rules(&twice), true).unwrap_err();
            assert_eq!(error, PriorityError::DuplicateRule(twice[1].parse().unwrap()));
        }
        let error = Priorities::new(&rules(&["*=1", "a=1"]), false).unwrap_err();
        assert!(error.to_string().contains("--tenant-header"), "{error}");
        assert!(Priorities::new(&rules(&["*=1"]), false).is_ok());
    }
}
