//! How urgent a tenant's requests may be.

use std::{collections::HashMap, fmt, str::FromStr};

use stoker_proto::v1::GenerateRequest;
use stoker_shared::validate::{self, DEFAULT_PRIORITY, MAX_PRIORITY};

use super::LONGEST;

/// The name for all tenants that have no rule of their own.
const OTHERS: &str = "*";

/// A rule: the most urgent priority that requests of a tenant get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantPriority {
    tenant: String,
    most: u32,
}

impl FromStr for TenantPriority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let example = "write NAME=N, for instance batch=500, or *=N for all other tenants";
        let (tenant, number) = text.rsplit_once('=').ok_or(example)?;
        if tenant.is_empty() || tenant.len() > LONGEST {
            return Err(format!("a tenant has a name of 1 to {LONGEST} bytes; {example}"));
        }
        if !tenant.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "tenants have names of printable ASCII, without blanks; {example}"
            ));
        }
        match number.parse() {
            Ok(most) if most <= MAX_PRIORITY => Ok(Self { tenant: tenant.to_owned(), most }),
            _ => Err(format!(
                "{number:?} is not a priority from 0, the most urgent, to {MAX_PRIORITY}; {example}"
            )),
        }
    }
}

impl fmt::Display for TenantPriority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.tenant, self.most)
    }
}

/// Rules that cannot all hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PriorityError {
    /// Which of them counts?
    #[error("--tenant-priority {0}: this tenant has a rule already; leave one")]
    Twice(TenantPriority),
    /// Nobody would ever have that name.
    #[error(
        "--tenant-priority {0} names a tenant, and nobody says who that is: give --tenant-header, or one rule *=N for \
         everybody"
    )]
    NoNames(TenantPriority),
}

/// All rules. A tenant without one gets the default priority at most: no request goes before others merely by
/// asking for it.
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
    /// Of these rules, where `named` says whether requests tell their tenant.
    pub(crate) fn new(rules: &[TenantPriority], named: bool) -> Result<Self, PriorityError> {
        let (mut tenants, mut others) = (HashMap::new(), None);
        for rule in rules {
            let before = if rule.tenant == OTHERS {
                others.replace(rule.most)
            } else if named {
                tenants.insert(rule.tenant.clone(), rule.most)
            } else {
                return Err(PriorityError::NoNames(rule.clone()));
            };
            if before.is_some() {
                return Err(PriorityError::Twice(rule.clone()));
            }
        }
        Ok(Self { tenants, others: others.unwrap_or(DEFAULT_PRIORITY) })
    }

    /// Makes a request of `tenant` no more urgent than it may be.
    pub(crate) fn limit(&self, tenant: &str, request: &mut GenerateRequest) {
        let most = self.tenants.get(tenant).copied().unwrap_or(self.others);
        if validate::priority(request) < most {
            request.priority = Some(most);
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
    fn a_rule_holds_for_its_tenant_and_a_star_for_all_others() {
        let priorities =
            Priorities::new(&rules(&["batch=500", "ops=0", "a=b=7", "*=50"]), true).unwrap();
        let limited = |tenant, priority| {
            let mut request = GenerateRequest { priority, ..Default::default() };
            priorities.limit(tenant, &mut request);
            request.priority
        };
        assert_eq!(limited("batch", Some(3)), Some(500));
        assert_eq!(limited("batch", None), Some(500), "as urgent as what is usual");
        assert_eq!(limited("batch", Some(700)), Some(700), "less is always allowed");
        assert_eq!((limited("ops", Some(0)), limited("ops", None)), (Some(0), None));
        assert_eq!((limited("", Some(7)), limited("x", None)), (Some(50), None));
        assert_eq!(limited("a=b", Some(0)), Some(7));
    }

    #[test]
    fn without_a_rule_nobody_goes_first() {
        for (priorities, tenant) in [
            (Priorities::default(), ""),
            (Priorities::new(&[], false).unwrap(), ""),
            (Priorities::new(&[], true).unwrap(), "acme"),
            (Priorities::new(&rules(&["ops=0", "batch=500"]), true).unwrap(), "acme"),
        ] {
            for (asked, gets) in [
                (Some(0), Some(100)),
                (Some(99), Some(100)),
                (Some(100), Some(100)),
                (Some(101), Some(101)),
                (Some(1_000), Some(1_000)),
                (None, None),
            ] {
                let mut request = GenerateRequest { priority: asked, ..Default::default() };
                priorities.limit(tenant, &mut request);
                assert_eq!(request.priority, gets, "{asked:?} of {tenant:?} by {priorities:?}");
            }
        }
    }

    #[test]
    fn what_is_no_rule_says_how_one_looks() {
        for bad in ["", "batch", "=5", "batch=", "batch=1001", "batch=-1", "a b=5", "batch=5x"] {
            let error = bad.parse::<TenantPriority>().unwrap_err();
            assert!(error.contains("NAME=N"), "{bad:?}: {error}");
        }
        let long = format!("{}=5", "x".repeat(LONGEST + 1)).parse::<TenantPriority>();
        assert!(long.unwrap_err().contains("1 to 64 bytes"));
        assert_eq!("batch=5".parse::<TenantPriority>().unwrap().to_string(), "batch=5");
    }

    #[test]
    fn rules_that_cannot_all_hold_are_refused() {
        for twice in [["a=1", "a=2"], ["*=1", "*=1"]] {
            let error = Priorities::new(&rules(&twice), true).unwrap_err();
            assert_eq!(error, PriorityError::Twice(twice[1].parse().unwrap()));
        }
        let error = Priorities::new(&rules(&["*=1", "a=1"]), false).unwrap_err();
        assert!(error.to_string().contains("--tenant-header"), "{error}");
        assert!(Priorities::new(&rules(&["*=1"]), false).is_ok());
    }
}
