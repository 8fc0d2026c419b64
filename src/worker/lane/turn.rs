//! Whether a lane takes over or reads next.
//!
//! What is pending with this consumer and not in its hands was lost on the way, unless a read is under way that
//! brings it just then: so the one never goes beside the other. What was delivered before is older than
//! anything new, and taken first. Where taking over fails, reading goes on.

/// How a lane stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// Something is to be taken over, or that is under way.
    pub job: bool,
    /// What is to be taken over is this consumer's own.
    pub own: bool,
    /// Taking over is under way.
    pub taking: bool,
    /// The last time it failed.
    pub fails: bool,
    /// A read has ended since.
    pub has_read: bool,
    /// A read is under way.
    pub reading: bool,
}

impl Turn {
    /// Whether to begin taking over, and whether to begin a read.
    pub(super) fn next(self) -> (bool, bool) {
        let own = self.job && self.own;
        let read_first = own && self.fails && !self.has_read;
        let take = self.job && !self.taking && !(own && (self.reading || read_first));
        let taking = self.taking || take;
        let may_read = match own {
            true => !taking,
            false => !taking || self.fails,
        };
        (take, may_read && !self.reading && (!own || read_first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = Turn> {
        (0..64u8).map(|bits| {
            let bit = |at: u8| bits & (1 << at) != 0;
            Turn {
                job: bit(0),
                own: bit(0) && bit(1),
                taking: bit(0) && bit(2),
                fails: bit(3),
                has_read: bit(4),
                // Never beside its own.
                reading: bit(5) && !(bit(0) && bit(1) && bit(2)),
            }
        })
    }

    #[test]
    fn what_is_its_own_is_never_taken_beside_a_read() {
        for turn in all() {
            let (take, read) = turn.next();
            let (taking, reading) = (turn.taking || take, turn.reading || read);
            assert!(!(turn.own && taking && reading), "{turn:?}");
            assert!(!(take && turn.taking), "{turn:?}");
            assert!(!(read && turn.reading), "{turn:?}");
            // Something is always under way.
            assert!(taking || reading, "{turn:?}");
        }
    }

    #[test]
    fn what_is_older_comes_first_unless_taking_it_over_fails() {
        for turn in all() {
            let (take, read) = turn.next();
            if turn.job && !turn.fails {
                assert!(!read, "{turn:?}");
                assert!(take || turn.taking || turn.reading, "{turn:?}");
            }
            if !turn.own && turn.fails {
                assert!(read || turn.reading, "{turn:?}");
            }
        }
    }

    #[test]
    fn where_its_own_fails_each_has_its_turn() {
        let failed = Turn {
            job: true,
            own: true,
            taking: false,
            fails: true,
            has_read: false,
            reading: false,
        };
        assert_eq!(failed.next(), (false, true));
        let read = Turn {
            has_read: true,
            ..failed
        };
        assert_eq!(read.next(), (true, false));
    }
}
