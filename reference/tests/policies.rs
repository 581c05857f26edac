//! Replacement policies, by hand: one set of four ways, a sequence of keys, and who is there afterwards.

use sevlab_memctl::model::Policy;
use sevlab_reference::array::{Array, Sequence};

/// Uses keys in turn, filling what misses. Returns the ways of the one set, and the misses.
fn run(policy: Policy, ways: usize, keys: &[u64]) -> (Vec<u64>, usize) {
    let mut array = Array::new(1, ways, policy, Sequence::of_cache(4));
    let mut misses = 0;
    for (time, key) in keys.iter().enumerate() {
        let time = time as u64 + 1;
        match array.find(0, *key) {
            Some(at) => array.touch(at, time),
            None => {
                misses += 1;
                array.insert(0, *key, (), time);
            }
        }
    }
    let keys = array.keys(0).into_iter().map(|k| k.unwrap_or(0));
    (keys.collect(), misses)
}

#[test]
fn invalid_ways_are_filled_from_the_lowest() {
    for policy in [
        Policy::Lru,
        Policy::TreePlru,
        Policy::Nru,
        Policy::Fifo,
        Policy::Random,
    ] {
        assert_eq!(run(policy, 4, &[1, 2, 3, 4]), (vec![1, 2, 3, 4], 4));
    }
}

#[test]
fn lru_takes_what_was_used_longest_ago() {
    // 1 is used again, so 2 goes for 5, then 3 for 6.
    let (ways, misses) = run(Policy::Lru, 4, &[1, 2, 3, 4, 1, 5, 6]);
    assert_eq!((ways, misses), (vec![1, 5, 6, 4], 6));
}

#[test]
fn of_equally_old_ways_the_lowest_goes() {
    let mut array = Array::new(1, 4, Policy::Lru, Sequence::of_cache(4));
    for key in 1..=4 {
        array.insert(0, key, (), 7);
    }
    assert_eq!(array.insert(0, 5, (), 8), Some((1, ())));
    assert_eq!(array.insert(0, 6, (), 8), Some((2, ())));
}

#[test]
fn fifo_takes_what_was_filled_longest_ago() {
    // That 1 is used again does not matter.
    let (ways, misses) = run(Policy::Fifo, 4, &[1, 2, 3, 4, 1, 5, 6, 1]);
    assert_eq!((ways, misses), (vec![5, 6, 1, 4], 7));
}

#[test]
fn nru_takes_the_lowest_without_its_bit() {
    // The fill of 4 would set the last bit, so the others are cleared: 1000 in ways 3..0. 1 is used: 1001. 5 takes way 1
    // (1011), 6 takes way 2, which would be all: 0100. 7 takes way 0.
    let (ways, misses) = run(Policy::Nru, 4, &[1, 2, 3, 4, 1, 5]);
    assert_eq!((ways, misses), (vec![1, 5, 3, 4], 5));
    let (ways, _) = run(Policy::Nru, 4, &[1, 2, 3, 4, 1, 5, 6, 7]);
    assert_eq!(ways, vec![7, 5, 6, 4]);
}

#[test]
fn tree_plru_follows_its_bits() {
    // After 1, 2, 3, 4 the root points to the lower half, and both nodes below to their lower way: 1 goes for 5. Then the root
    // points up: 3 goes for 6; then down, where the node points to way 1: 2 goes for 7.
    let (ways, misses) = run(Policy::TreePlru, 4, &[1, 2, 3, 4, 5, 6, 7]);
    assert_eq!((ways, misses), (vec![5, 7, 6, 4], 7));
    // A use of way 0 turns the root to the upper half and its node to way 1: 3 goes, then 2.
    let (ways, _) = run(Policy::TreePlru, 4, &[1, 2, 3, 4, 1, 5, 6]);
    assert_eq!(ways, vec![1, 6, 5, 4]);
}

#[test]
fn random_takes_a_step_for_each_eviction() {
    // By another program: xorshift64* from 4 * 0x9e3779b97f4a7c15; four times the upper half of each output, divided by 2^32, is
    // [1, 0, 2, 0, 0, 2]. From 3, the upper halves modulo 4 are [2, 2, 2, 2, 0, 1].
    let keys: Vec<u64> = (1..=10).collect();
    assert_eq!(run(Policy::Random, 4, &keys).0, vec![9, 5, 10, 4]);
    let mut tlb = Array::new(1, 4, Policy::Random, Sequence::of_tlb(3));
    for key in keys {
        tlb.insert(0, key, (), 0);
    }
    assert_eq!(tlb.keys(0), [9, 10, 8, 4].map(Some));
}

#[test]
fn an_invalidated_way_is_taken_first() {
    let filled = || {
        let mut array = Array::new(1, 4, Policy::Nru, Sequence::of_cache(4));
        for key in 1..=3 {
            array.insert(0, key, (), key);
        }
        let at = array.find(0, 2).expect("just inserted");
        (array, at)
    };
    // It counts as used still: a use of 4 makes it all four, and the others' bits are cleared. So 1 goes, then 5.
    let (mut array, at) = filled();
    array.take(at);
    array.insert(0, 4, (), 4);
    array.insert(0, 5, (), 5);
    assert_eq!(array.keys(0), [1, 4, 3, 5].map(Some));
    assert_eq!(array.insert(0, 6, (), 6), Some((1, ())));
    // Or it does not: in way 3, the key 7 is used while way 1 is empty, and the bits of 1 and 3 stay.
    for keeps in [true, false] {
        let (mut array, at) = filled();
        array.insert(0, 4, (), 4);
        let first = array.find(0, 1).expect("still there");
        let third = array.find(0, 3).expect("still there");
        array.touch(first, 5);
        array.touch(at, 5);
        if keeps {
            array.take(at);
        } else {
            array.remove(at);
        }
        // Keeping: all four would be set, so 3's alone is. Else 1, 3 and 4 have theirs.
        array.touch(third, 6);
        array.insert(0, 7, (), 7);
        // Keeping: 3 and 7, in ways 2 and 1. Else all would be set: 7's alone is.
        assert_eq!(array.keys(0), [1, 7, 3, 4].map(Some));
        let fourth = array.find(0, 1).expect("still there");
        array.touch(fourth, 8);
        assert_eq!(
            array.insert(0, 8, (), 9).map(|(k, ())| k),
            Some(if keeps { 4 } else { 3 })
        );
    }
}
