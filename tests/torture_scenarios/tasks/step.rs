//! What may happen to tasks and to those who hold them.

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Create {
        task: u8,
        kind: u8,
        role: u8,
        priority: u8,
        attempts: u32,
        requires: u8,
    },
    Register {
        instance: u8,
        capacity: u32,
        kinds: u8,
        roles: u8,
    },
    Pulse(u8),
    Unregister(u8),
    /// It dies, and somebody sweeps.
    Lose(u8),
    Sweep,
    /// Its process starts again.
    Begin(u8),
    Retire(u8),
    Complete(u8),
    /// Whether it may be tried again.
    Fail(u8, bool),
    Cancel(u8),
    /// Changes one: its priority, or what it requires.
    Update(u8, u8, Option<u8>),
    Assign(u8, u8),
    Unassign(u8),
    /// The external instance takes this many, of these kinds if any.
    Claim(u8, u8),
    /// Makes an earlier claim again.
    ClaimAgain(u8),
    /// Says again that an attempt failed that was said to have.
    Repeat(u16),
    /// Completes or fails under an assignment that was.
    Stale(u16, bool),
    /// Looks at what waits.
    Look,
}
