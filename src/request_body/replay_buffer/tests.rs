use std::future::poll_fn;

use super::*;

const UNLIMITED: u64 = u64::MAX;

async fn read_all(buffer: &mut ReplayBuffer) -> io::Result<Vec<u8>> {
    let (mut cursor, mut all) = (Cursor::default(), Vec::new());
    poll_fn(|cx| buffer.poll_write_done(cx)).await;
    while let Some(chunk) = poll_fn(|cx| buffer.poll_read(&mut cursor, cx)).await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

async fn push(buffer: &mut ReplayBuffer, size: usize) -> Vec<u8> {
    poll_fn(|cx| buffer.poll_write_done(cx)).await;
    let chunk = vec![size as u8; size];
    buffer.push(&chunk.clone().into());
    poll_fn(|cx| buffer.poll_write_done(cx)).await;
    chunk
}

#[tokio::test]
async fn buffer_replays_memory_and_file_and_frees_both() {
    let dir = tempfile::tempdir().expect("a directory");
    for memory in [0, 1, 8 * 10_000, 8 << 20] {
        let budget = Arc::new(ReplayBudget::new(memory, UNLIMITED, dir.path().to_owned()));
        let mut buffer = ReplayBuffer::new(&budget, Owner::of(None), None).expect("room");
        let mut expected = Vec::new();
        for size in [1, 100, 5000, 3, 4000, 20_000, 7, 300_000, 1, 70_000, 5] {
            expected.extend(push(&mut buffer, size).await);
            assert_eq!(buffer.usage(), (budget.memory_used(), budget.disk_used()));
            assert!(budget.memory_used() <= memory + MIN_WRITE_BYTES);
        }
        assert_eq!(read_all(&mut buffer).await.expect("all of it"), expected);
        assert_eq!(dir.path().read_dir().expect("a directory").count(), 0);
        drop(buffer);
        assert_eq!((budget.memory_used(), budget.disk_used()), (0, 0));
    }
}

#[tokio::test]
async fn failed_write_makes_the_buffer_unreadable() {
    let dir = tempfile::tempdir().expect("a directory");
    let budget = Arc::new(ReplayBudget::new(0, UNLIMITED, dir.path().to_owned()));
    let mut buffer = ReplayBuffer::new(&budget, Owner::of(None), None).expect("room");
    push(&mut buffer, WRITE_BYTES as usize).await;
    // Opened read-only, so that the next write fails as on a full disk.
    let file = File::open("/dev/null").expect("a file");
    buffer.spill_file = Some(Arc::new(SpillFile { file, reservation: Reservation::empty(&budget.disk) }));
    push(&mut buffer, WRITE_BYTES as usize).await;
    assert!(read_all(&mut buffer).await.is_err());
    assert!(!buffer.is_complete());
    assert_eq!((budget.memory_used(), budget.disk_used()), (0, 0), "an incomplete buffer is freed");
}

#[tokio::test]
async fn declared_length_is_refused_or_reserved_in_full() {
    let dir = tempfile::tempdir().expect("a directory");
    let budget = Arc::new(ReplayBudget::new(80_000, 20_000, dir.path().to_owned()));
    let used = || (budget.memory_used(), budget.disk_used());
    let declared = |length| ReplayBuffer::new(&budget, Owner::of(None), Some(length));
    assert!(matches!(declared(20_001), Err(ReplayBudgetExceeded)));
    let mut first = declared(15_000).expect("room");
    let second = declared(15_000).expect("room");
    assert!(!first.is_reserved() && used() == (0, 0), "more than half waits for the first chunk");
    assert_eq!(first.reserve_declared(), Ok(()));
    assert_eq!((used(), first.usage()), ((0, 15_000), (0, 15_000)));
    assert_eq!(second.reserve_declared(), Err(ReplayBudgetExceeded));
    assert!(matches!(declared(10_001), Err(ReplayBudgetExceeded)));
    let mut small = Vec::new();
    for _ in 0..8 {
        let mut buffer = declared(10_000).expect("room in memory");
        assert!(buffer.is_reserved() || buffer.reserve_declared().is_ok());
        push(&mut buffer, 5_000).await;
        small.push(buffer);
    }
    assert_eq!(used(), (80_000, 15_000), "a partly received body has its memory");
    let mut expected = push(&mut first, 9_000).await;
    let mut unknown = ReplayBuffer::new(&budget, Owner::of(None), None).expect("room");
    push(&mut unknown, 6_000).await;
    assert!(!unknown.is_complete(), "5,000 bytes were left");
    expected.extend(push(&mut first, 6_000).await);
    for buffer in &mut small {
        push(buffer, 5_000).await;
        assert!(buffer.is_complete() && buffer.usage() == (10_000, 0));
    }
    assert_eq!(read_all(&mut first).await.expect("all of it"), expected);
    drop((first, second, small, unknown));
    assert_eq!(used(), (0, 0));
}

#[tokio::test]
async fn chunk_whose_memory_is_reserved_needs_no_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let budget = Arc::new(ReplayBudget::new(80_000, 0, dir.path().to_owned()));
    let mut buffer = ReplayBuffer::new(&budget, Owner::of(None), None).expect("room");
    push(&mut buffer, 1_000).await;
    assert!(buffer.reserve_memory(5_000));
    // Another worker takes the rest meanwhile.
    let others = Reservation::empty(&budget.memory);
    assert!(others.try_grow(80_000 - budget.memory_used()));
    push(&mut buffer, 5_000).await;
    assert!(buffer.is_complete());
    assert!(!buffer.reserve_memory(5_000));
    drop((buffer, others));
    assert_eq!(budget.memory_used(), 0);
}

#[tokio::test]
async fn reserved_body_needs_no_file_while_the_memory_bound_is_exceeded() {
    let dir = tempfile::tempdir().expect("a directory");
    let budget = Arc::new(ReplayBudget::new(80_000, UNLIMITED, dir.path().to_owned()));
    let mut reserved = ReplayBuffer::new(&budget, Owner::of(None), Some(10_000)).expect("room");
    let others = Reservation::forced(&budget.memory, 80_000);
    assert!(reserved.is_reserved() && budget.memory_used() == 90_000);
    for _ in 0..5 {
        push(&mut reserved, 2_000).await;
    }
    assert_eq!((reserved.usage(), budget.disk_used()), ((10_000, 0), 0));
    drop((reserved, others));
}

#[tokio::test]
async fn blocks_of_one_body_serve_the_next_within_the_bound() {
    let dir = tempfile::tempdir().expect("a directory");
    let memory = 32 * BLOCK_BYTES;
    let budget = Arc::new(ReplayBudget::new(memory, 0, dir.path().to_owned()));
    let body = || ReplayBuffer::new(&budget, Owner::of(None), None).expect("room");
    for _ in 0..2 {
        let mut buffer = body();
        let expected = push(&mut buffer, 2 * BLOCK_BYTES as usize).await;
        assert_eq!(budget.memory.pool.bytes(), 0, "both free blocks are in use again");
        assert_eq!(read_all(&mut buffer).await.expect("all of it"), expected);
        drop(buffer);
        assert_eq!((budget.memory_used(), budget.memory.pool.bytes()), (0, 2 * BLOCK_BYTES));
    }
    let others = Reservation::empty(&budget.memory);
    assert!(others.try_grow(memory - BLOCK_BYTES) && budget.memory.pool.bytes() == BLOCK_BYTES);
    assert!(others.try_grow(1) && budget.memory.pool.bytes() == 0);
}

#[tokio::test]
async fn body_beyond_the_disk_budget_is_discarded() {
    let dir = tempfile::tempdir().expect("a directory");
    let budget = Arc::new(ReplayBudget::new(0, 100_000, dir.path().to_owned()));
    let mut buffer = ReplayBuffer::new(&budget, Owner::of(None), None).expect("room");
    push(&mut buffer, 60_000).await;
    assert!(buffer.is_complete() && budget.disk_used() == 60_000);
    push(&mut buffer, 60_000).await;
    assert!(!buffer.is_complete());
    assert_eq!((budget.memory_used(), budget.disk_used()), (0, 0));
}
