//! Which worker is to own which partition.
//!
//! Each worker calculates it from the same facts: who owns what, and who is there. So nobody has to be asked, and nobody
//! has to lead. Where two see other facts, one of them waits for a moment for what the other one keeps: never do two of
//! them own one partition, whatever they calculate.

use std::cmp::Reverse;
use std::collections::HashMap;

/// A worker that may own partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::worker) struct Member {
    pub id: String,
    /// How much of the work it takes, beside the others.
    pub capacity: u64,
}

/// Who is to own each partition, by the owners that there are; each member within one of its share by capacity, and with
/// as few moves as that takes.
pub(in crate::worker) fn spread<'a>(
    domain: &str,
    owners: &[Option<&str>],
    members: &'a [Member],
) -> Vec<Option<&'a str>> {
    let members: HashMap<&str, u64> = members
        .iter()
        .map(|member| (&*member.id, member.capacity.max(1)))
        .collect();
    // In another order for each domain, or the same ones would have more of all of them.
    let mut members: Vec<(&str, u64)> = members.into_iter().collect();
    members.sort_unstable_by_key(|(id, _)| (mixed(domain, id), *id));
    let place: HashMap<&str, usize> = members
        .iter()
        .enumerate()
        .map(|(at, (id, _))| (*id, at))
        .collect();
    let owned_by = |owner: &Option<&str>| owner.and_then(|owner| place.get(owner).copied());
    let mut has = vec![0_u64; members.len()];
    for at in owners.iter().filter_map(owned_by) {
        has[at] += 1;
    }
    let mut room = shares(owners.len() as u64, &members, &has);
    let mut target: Vec<Option<&str>> = owners
        .iter()
        .map(|owner| {
            let at = owned_by(owner).filter(|at| room[*at] > 0)?;
            room[at] -= 1;
            Some(members[at].0)
        })
        .collect();
    let free = target.iter_mut().filter(|target| target.is_none());
    let takers = room.iter().enumerate();
    let takers = takers.flat_map(|(at, room)| std::iter::repeat_n(at, *room as usize));
    for (target, at) in free.zip(takers) {
        *target = Some(members[at].0);
    }
    target
}

/// A number that depends on all of both names (FNV-1a, and the end of SplitMix64).
fn mixed(domain: &str, id: &str) -> u64 {
    let names = domain.bytes().chain([b' ']).chain(id.bytes());
    let sum = names.fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let sum = (sum ^ sum >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let sum = (sum ^ sum >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    sum ^ sum >> 31
}

/// How many partitions each is to have. What cannot be shared out evenly goes to those who have it.
fn shares(partitions: u64, members: &[(&str, u64)], has: &[u64]) -> Vec<u64> {
    let all: u128 = members
        .iter()
        .map(|(_, capacity)| u128::from(*capacity))
        .sum();
    let part = |capacity: u64| u128::from(partitions) * u128::from(capacity);
    let whole = |capacity: u64| (part(capacity) / all) as u64;
    let mut shares: Vec<u64> = members
        .iter()
        .map(|(_, capacity)| whole(*capacity))
        .collect();
    let mut more: Vec<usize> = (0..members.len())
        .filter(|at| part(members[*at].1) % all > 0)
        .collect();
    more.sort_by_key(|at| (has[*at] <= shares[*at], Reverse(part(members[*at].1) % all)));
    let rest = partitions.saturating_sub(shares.iter().sum()) as usize;
    for at in more.into_iter().take(rest) {
        shares[at] += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn members(capacities: &[u64]) -> Vec<Member> {
        let member = |(n, capacity): (usize, &u64)| Member {
            id: format!("w-{n}"),
            capacity: *capacity,
        };
        capacities.iter().enumerate().map(member).collect()
    }

    fn settled(owners: &[Option<&str>], members: &[Member]) -> Vec<Option<String>> {
        let target = spread("image", owners, members);
        target.iter().map(|it| it.map(str::to_owned)).collect()
    }

    fn as_owners(target: &[Option<String>]) -> Vec<Option<&str>> {
        target.iter().map(Option::as_deref).collect()
    }

    fn moves(from: &[Option<String>], to: &[Option<String>]) -> usize {
        from.iter().zip(to).filter(|(from, to)| from != to).count()
    }

    #[test]
    fn a_fifth_at_the_most_moves_when_a_fifth_worker_comes_and_when_it_goes() {
        let four = settled(&[None; 64], &members(&[1; 4]));
        let five = settled(&as_owners(&four), &members(&[1; 5]));
        let back = settled(&as_owners(&five), &members(&[1; 4]));
        assert_eq!(moves(&four, &five), 12);
        assert_eq!(moves(&five, &back), 12);
    }

    #[test]
    fn domains_of_one_partition_are_with_several_workers() {
        let all = members(&[1; 4]);
        let owner = |n: u32| spread(&format!("d-{n}"), &[None], &all)[0];
        let mut owners: Vec<_> = (0..40).map(owner).collect();
        owners.sort_unstable();
        owners.dedup();
        assert_eq!(owners.len(), 4);
    }

    #[test]
    fn where_nobody_is_nobody_owns_anything() {
        assert_eq!(spread("image", &[Some("w-1"), None], &[]), [None, None]);
    }

    proptest! {
        #[test]
        fn each_has_its_share_whoever_owns_what_and_then_nothing_moves(
            owners in prop::collection::vec(prop::option::of(0..12_usize), 0..200),
            capacities in prop::collection::vec(0..20_u64, 1..10),
        ) {
            let all = members(&capacities);
            let names: Vec<String> = (0..12).map(|n| format!("w-{n}")).collect();
            let owners: Vec<Option<&str>> = owners.iter().map(|it| it.map(|n| &*names[n])).collect();
            let target = spread("image", &owners, &all);
            let sum: u64 = capacities.iter().map(|it| (*it).max(1)).sum();
            let (mut kept, mut least) = (0, 0);
            for member in &all {
                let has = target.iter().filter(|it| **it == Some(&*member.id)).count() as u64;
                let had = owners.iter().filter(|it| **it == Some(&*member.id)).count() as u64;
                let share = owners.len() as u64 * member.capacity.max(1);
                prop_assert!(has >= share / sum && has <= share.div_ceil(sum), "{has} of {share}/{sum}");
                kept += target.iter().zip(&owners).filter(|(to, is)| to == is && **to == Some(&*member.id)).count() as u64;
                least += had.min(has);
            }
            prop_assert_eq!(kept, least, "nothing moves that need not");
            prop_assert!(target.iter().all(Option::is_some));
            let again = spread("image", &target, &all);
            prop_assert_eq!(&again, &target);
            let mut turned = all.clone();
            turned.reverse();
            prop_assert_eq!(spread("image", &owners, &turned), target.clone());
        }
    }
}
