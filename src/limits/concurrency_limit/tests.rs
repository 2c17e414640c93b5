//! Places as callers see them.

use super::*;

const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

fn flow_key(places: &ConcurrencyLimit, client: &str) -> FlowKey {
    places.flow_key(Some(client), Some("hr"), "/cgi-bin/user/get")
}

async fn acquire_as(places: &Arc<ConcurrencyLimit>, client: &str) -> Result<Permit, AcquireError> {
    match places.try_acquire_uncontended() {
        Some(place) => Ok(place),
        None => places.acquire(flow_key(places, client), ACQUIRE_TIMEOUT).await,
    }
}

#[tokio::test(start_paused = true)]
async fn flood_leaves_permits_unless_the_limit_is_small() {
    for (total, taken) in [(1, 1), (2, 2), (16, 16), (63, 63), (64, 59), (4096, 3773)] {
        let places = Arc::new(ConcurrencyLimit::new(total));
        let mut held = Vec::new();
        while let Ok(place) = acquire_as(&places, "flood").await {
            held.push(place);
        }
        assert_eq!(held.len(), taken, "of {total}");
        assert_eq!(acquire_as(&places, "another").await.is_ok(), taken < total);
        drop(held);
        assert_eq!(places.in_use(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn waiter_gets_the_released_permit_and_leaves_no_state() {
    let places = Arc::new(ConcurrencyLimit::new(1));
    let first = acquire_as(&places, "one").await.expect("a place");
    let late = acquire_as(&places, "two").await;
    assert_eq!(late.map(drop), Err(AcquireError::TimedOut));
    let (second, ()) = tokio::join!(acquire_as(&places, "two"), async { drop(first) });
    drop(second.expect("a place"));
    assert_eq!((places.available(), places.lock_queue().fair_queue.queued()), (1, 0));
    assert!(acquire_as(&places, "three").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn wait_queue_is_bounded_and_a_flood_leaves_room() {
    let places = Arc::new(ConcurrencyLimit::new(1));
    let _held = acquire_as(&places, "one").await.expect("a place");
    let mut waiting = Vec::new();
    let full = loop {
        match places.acquire_or_enqueue(flow_key(&places, "flood")) {
            Ok(Admission::Queued(turn)) => waiting.push(turn),
            Ok(Admission::Granted(_)) => panic!("there is none"),
            Err(full) => break full,
        }
    };
    assert_eq!(full, AcquireError::QueueFull);
    assert!((MIN_QUEUE_CAPACITY / 2..MIN_QUEUE_CAPACITY).contains(&waiting.len()), "{}", waiting.len());
    assert!(matches!(places.acquire_or_enqueue(flow_key(&places, "another")), Ok(Admission::Queued(_))));
    waiting.clear();
    assert_eq!(places.queued.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn closed_limit_fails_waiters_and_grants_free_permits() {
    let places = Arc::new(ConcurrencyLimit::new(1));
    let held = acquire_as(&places, "one").await.expect("a place");
    let (waited, ()) = tokio::join!(acquire_as(&places, "two"), async { places.close() });
    assert_eq!(waited.map(drop), Err(AcquireError::Closed));
    assert_eq!(acquire_as(&places, "two").await.map(drop), Err(AcquireError::Closed));
    drop(held);
    assert!(acquire_as(&places, "two").await.is_ok());
}

#[test]
fn many_threads_lose_no_permit_and_no_wakeup() {
    let places = Arc::new(ConcurrencyLimit::new(3));
    let work = |client: String| {
        let places = places.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                for _ in 0..3000 {
                    let place = acquire_as(&places, &client).await.expect("a place in time");
                    tokio::task::yield_now().await;
                    drop(place);
                }
            });
            Ok::<_, std::io::Error>(())
        }
    };
    let threads: Vec<_> = (0..6).map(|nth| std::thread::spawn(work(nth.to_string()))).collect();
    for thread in threads {
        thread.join().expect("no panic").expect("a runtime");
    }
    assert_eq!((places.available(), places.lock_queue().fair_queue.queued()), (3, 0));
}
