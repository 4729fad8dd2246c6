//! The plans that there are to choose from. What is not here cannot be chosen, whatever a model says.

use crate::buffer::PolicyConfig;
use crate::error::Result;

/// A set-up of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its name: one word of small letters.
    pub name: &'static str,
    /// The policy, as a configuration names it.
    policy: &'static str,
    /// Whether it keeps what the announced minibatches want next.
    pub announced: bool,
}

/// All of them: counts that halve over 512, 64 and 4096 minibatches, alone and beyond what is announced, and two policies that count otherwise.
pub const PLANS: [Plan; 8] = [
    Plan { name: "lfu", policy: "lfu", announced: false },
    Plan { name: "lfubrief", policy: "lfu:64", announced: false },
    Plan { name: "lfulong", policy: "lfu:4096", announced: false },
    Plan { name: "tiny", policy: "wtinylfu", announced: false },
    Plan { name: "degree", policy: "degree", announced: false },
    Plan { name: "window", policy: "window", announced: true },
    Plan { name: "windowbrief", policy: "window:64", announced: true },
    Plan { name: "windowlong", policy: "window:4096", announced: true },
];

impl Plan {
    /// The plan that it is the same as while nothing is announced; none of one that needs no announcements.
    pub fn alone(&self) -> Option<&'static str> {
        match self.name {
            "window" => Some("lfu"),
            "windowbrief" => Some("lfubrief"),
            "windowlong" => Some("lfulong"),
            _ => None,
        }
    }

    /// The policy by itself.
    pub(super) fn simple(&self) -> Result<PolicyConfig> {
        PolicyConfig::named(self.policy)
    }

    /// The policy with wants that are weighed by owner, where it counts them.
    pub(super) fn weighing(&self) -> Result<PolicyConfig> {
        let mut policy = self.simple()?;
        if let PolicyConfig::Lfu(counting) | PolicyConfig::Window(counting) = &mut policy {
            counting.owners = true;
        }
        Ok(policy)
    }
}

#[cfg(test)]
mod tests {
    //! Goal: plans can be told apart and carried out. Method: each by itself.
    use super::*;

    #[test]
    fn every_plan_has_a_name_of_its_own_and_a_policy_that_can_follow_others() {
        for (at, plan) in PLANS.iter().enumerate() {
            assert!(plan.name.bytes().all(|letter| letter.is_ascii_lowercase()), "{}", plan.name);
            assert!(PLANS[..at].iter().all(|other| other.name != plan.name && other.policy != plan.policy));
            plan.simple().unwrap().check_follows().unwrap();
            assert_eq!(plan.announced, matches!(plan.simple().unwrap(), PolicyConfig::Window(_)));
        }
    }
}
