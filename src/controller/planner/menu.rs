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

/// Of plans that can be chosen, each by its place in [`PLANS`] and its score, the one that scores highest if it does so by more than a margin, and
/// the default otherwise; none of none.
///
/// The default is what a buffer does well with that nobody chooses for: `window`, and `lfu` while nothing is announced. To leave it is a risk, which a
/// slight preference is not worth.
pub fn preferred(scores: &[(usize, f64)], margin: f64) -> Option<usize> {
    let named = |name: &str| scores.iter().find(|(plan, _)| PLANS[*plan].name == name);
    let (best, highest) = scores.iter().max_by(|(_, one), (_, other)| one.total_cmp(other))?;
    match named("window").or_else(|| named("lfu")) {
        Some((default, score)) if highest - score <= margin => Some(*default),
        _ => Some(*best),
    }
}

#[cfg(test)]
mod tests {
    //! Goal: plans can be told apart and carried out, and the default is left for what is clearly better alone. Method: each by itself; scores by hand.
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

    #[test]
    fn the_default_is_left_for_a_clear_answer_alone() {
        let chosen = |scores: &[(usize, f64)], margin| preferred(scores, margin).map(|plan| PLANS[plan].name);
        let alone = [(0, 0.3), (1, 0.2), (3, 0.5)];
        assert_eq!(chosen(&alone, 0.0), Some("tiny"));
        assert_eq!(chosen(&alone, 0.1), Some("tiny"));
        assert_eq!(chosen(&alone, 0.3), Some("lfu"));
        let announced = [(0, 0.25), (3, 0.5), (5, 0.25)];
        assert_eq!(chosen(&announced, 0.125), Some("tiny"));
        assert_eq!(chosen(&announced, 0.25), Some("window"), "what is announced is worth more than counts");
        assert_eq!(chosen(&[(0, 0.5), (5, 0.5)], 0.0), Some("window"), "a tie is no preference");
        assert_eq!(chosen(&[(3, 0.1), (4, 0.9)], 1.0), Some("degree"), "there is no default to stay with");
        assert_eq!(chosen(&[], 0.0), None);
    }
}
