//! Asynchronous copies: they arrive at the wait that covers their group, and not before.

use crate::library::{Library, ORDERS, POISON, Shape, Vector, args};

/// In how many orders `stream` copied as it should, and whether what was wrong was poison every time.
fn right_streams(copies: &Library) -> (usize, bool) {
    let (threads, steps) = (64, 7);
    let input: Vec<Vector> = (0..threads * steps)
        .map(|i| Vector([i, i + 1000, i + 2000, i + 3000]))
        .collect();
    let mut only_poison = true;
    let mut is_right = |order| {
        let mut out = vec![Vector([0; 4]); input.len()];
        let shape = Shape {
            shared: 3 * 16 * threads,
            order,
            ..Shape::block(threads)
        };
        let args = args![&input[..], &mut out[..], steps];
        copies.launch("stream", shape, args).unwrap();
        let wrong: Vec<usize> = (0..out.len())
            .filter(|i| out[*i] != input[i / 64 * 64 + 63 - i % 64])
            .collect();
        only_poison &= wrong.iter().all(|&i| out[i] == Vector([POISON; 4]));
        wrong.is_empty()
    };
    let right = ORDERS.into_iter().filter(|&order| is_right(order)).count();
    (right, only_poison)
}

#[test]
fn copies_arrive_at_their_wait() {
    assert_eq!(
        right_streams(&Library::open("copies")),
        (ORDERS.len(), true)
    );
}

#[test]
fn a_missing_commit_or_wait_is_noticed_in_every_order() {
    for missing in ["LEAVE_OUT=1", "LEAVE_OUT=2", "LEAVE_OUT=3"] {
        assert_eq!(
            right_streams(&Library::with("copies", &[missing])),
            (0, true),
            "{missing}"
        );
    }
}

#[test]
fn a_missing_barrier_behind_a_wait_is_noticed_in_every_order() {
    let (right, _) = right_streams(&Library::with("copies", &["LEAVE_OUT=4"]));
    assert_eq!(right, 0);
}

#[test]
fn copies_that_are_not_valid_are_zeros() {
    let copies = Library::open("copies");
    let mut out = vec![f32::NAN; 4 * 32];
    let shape = Shape {
        shared: 16 * 32,
        ..Shape::warp()
    };
    copies.launch("zeros", shape, args![&mut out[..]]).unwrap();
    assert_eq!(out, [0.0; 4 * 32]);
}

#[test]
fn copies_to_or_from_the_wrong_place_are_reported() {
    let copies = Library::open("copies");
    let mut data = [Vector([0; 4]); 8];
    let shape = Shape {
        shared: 64,
        ..Shape::block(1)
    };
    let place = |shared: u32, global: u32| {
        copies.launch("badly_placed", shape, args![&data[..], shared, global])
    };
    place(48, 16).unwrap();
    let said = |result: Result<(), String>, what: &str| {
        let message = result.unwrap_err();
        assert!(
            message.contains("copies.cu:") && message.contains(what),
            "{message}"
        );
    };
    said(place(8, 0), "shared memory is not a multiple of 16");
    said(place(0, 4), "global memory is not a multiple of 16");
    said(place(64, 0), "not in the shared memory");
    said(place(52, 0), "not in the shared memory");
    copies.expect_fault(
        "copy_to_global",
        shape,
        args![&mut data[..]],
        &["not in the shared memory"],
    );
}
