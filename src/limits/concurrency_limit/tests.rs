//! The concurrency limit through its public interface.

use super::*;

const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

fn flow_key(limit: &ConcurrencyLimit, client: &str) -> FlowKey {
    limit.flow_key(Some(client), Some("hr"), "/cgi-bin/user/get")
}

async fn acquire_as(limit: &Arc<ConcurrencyLimit>, client: &str) -> Result<Permit, AcquireError> {
    match limit.try_acquire_uncontended() {
        Some(permit) => Ok(permit),
        None => limit.acquire(flow_key(limit, client), ACQUIRE_TIMEOUT).await,
    }
}

#[tokio::test(start_paused = true)]
async fn flood_leaves_permits_unless_the_limit_is_small() {
    for (total, taken) in [(1, 1), (2, 2), (16, 16), (63, 63), (64, 59), (4096, 3773)] {
        let limit = Arc::new(ConcurrencyLimit::new(total));
        let mut held = Vec::new();
        while let Ok(permit) = acquire_as(&limit, "flood").await {
            held.push(permit);
        }
        assert_eq!(held.len(), taken, "of {total}");
        assert_eq!(acquire_as(&limit, "another").await.is_ok(), taken < total);
        drop(held);
        assert_eq!(limit.in_use(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn waiter_gets_the_released_permit_and_leaves_no_state() {
    let limit = Arc::new(ConcurrencyLimit::new(1));
    let first = acquire_as(&limit, "one").await.expect("a permit");
    let late = acquire_as(&limit, "two").await;
    assert_eq!(late.map(drop), Err(AcquireError::TimedOut));
    let (second, ()) = tokio::join!(acquire_as(&limit, "two"), async { drop(first) });
    drop(second.expect("a permit"));
    assert_eq!((limit.available(), limit.queue.lock().fair_queue.queued()), (1, 0));
    assert!(acquire_as(&limit, "three").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn wait_queue_is_bounded_and_a_flood_leaves_room() {
    let limit = Arc::new(ConcurrencyLimit::new(1));
    let _held = acquire_as(&limit, "one").await.expect("a permit");
    let mut waiting = Vec::new();
    let full = loop {
        match limit.acquire_or_enqueue(flow_key(&limit, "flood")) {
            Ok(Admission::Queued(waiter)) => waiting.push(waiter),
            Ok(Admission::Granted(_)) => panic!("no permit is free"),
            Err(full) => break full,
        }
    };
    assert_eq!(full, AcquireError::QueueFull);
    assert!((MIN_QUEUE_CAPACITY / 2..MIN_QUEUE_CAPACITY).contains(&waiting.len()), "{}", waiting.len());
    assert!(matches!(limit.acquire_or_enqueue(flow_key(&limit, "another")), Ok(Admission::Queued(_))));
    waiting.clear();
    assert_eq!(limit.queued.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn closed_limit_fails_waiters_and_grants_free_permits() {
    let limit = Arc::new(ConcurrencyLimit::new(1));
    let held = acquire_as(&limit, "one").await.expect("a permit");
    let (waited, ()) = tokio::join!(acquire_as(&limit, "two"), async { limit.close() });
    assert_eq!(waited.map(drop), Err(AcquireError::Closed));
    assert_eq!(acquire_as(&limit, "two").await.map(drop), Err(AcquireError::Closed));
    drop(held);
    assert!(acquire_as(&limit, "two").await.is_ok());
}

#[test]
fn many_threads_lose_no_permit_and_no_wakeup() {
    let limit = Arc::new(ConcurrencyLimit::new(3));
    let work = |client: String| {
        let limit = limit.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                for _ in 0..3000 {
                    let permit = acquire_as(&limit, &client).await.expect("a permit in time");
                    tokio::task::yield_now().await;
                    drop(permit);
                }
            });
            Ok::<_, std::io::Error>(())
        }
    };
    let threads: Vec<_> = (0..6).map(|nth| std::thread::spawn(work(nth.to_string()))).collect();
    for thread in threads {
        thread.join().expect("no panic").expect("a runtime");
    }
    assert_eq!((limit.available(), limit.queue.lock().fair_queue.queued()), (3, 0));
}
