//! Places as callers see them.

use super::*;

const PATIENCE: Duration = Duration::from_secs(2);

fn flow(places: &Places, client: &str) -> Flow {
    places.flow(Some(client), Some("hr"), "/cgi-bin/user/get")
}

async fn take_as(places: &Arc<Places>, client: &str) -> Result<Place, NoPlace> {
    match places.take() {
        Some(place) => Ok(place),
        None => places.wait(flow(places, client), PATIENCE).await,
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_leaves_places_to_others_and_few_places_are_all_given() {
    for (total, taken) in [(1, 1), (2, 2), (16, 16), (63, 63), (64, 59), (4096, 3773)] {
        let places = Arc::new(Places::new(total));
        let mut held = Vec::new();
        while let Ok(place) = take_as(&places, "flood").await {
            held.push(place);
        }
        assert_eq!(held.len(), taken, "of {total}");
        assert_eq!(take_as(&places, "another").await.is_ok(), taken < total);
        drop(held);
        assert_eq!(places.taken(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_gets_the_place_that_comes_free_and_leaves_nothing_behind() {
    let places = Arc::new(Places::new(1));
    let first = take_as(&places, "one").await.expect("a place");
    let late = take_as(&places, "two").await;
    assert_eq!(late.map(drop), Err(NoPlace::Late));
    let (second, ()) = tokio::join!(take_as(&places, "two"), async { drop(first) });
    drop(second.expect("a place"));
    assert_eq!((places.free(), places.row().turns.waiting()), (1, 0));
    assert!(take_as(&places, "three").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_row_is_bounded_and_a_flood_leaves_room_in_it() {
    let places = Arc::new(Places::new(1));
    let _held = take_as(&places, "one").await.expect("a place");
    let mut waiting = Vec::new();
    let full = loop {
        match places.ask(flow(&places, "flood")) {
            Ok(Asked::Turn(turn)) => waiting.push(turn),
            Ok(Asked::Place(_)) => panic!("there is none"),
            Err(full) => break full,
        }
    };
    assert_eq!(full, NoPlace::Full);
    assert!((LEAST_ROOM / 2..LEAST_ROOM).contains(&waiting.len()), "{}", waiting.len());
    assert!(matches!(places.ask(flow(&places, "another")), Ok(Asked::Turn(_))));
    waiting.clear();
    assert_eq!(places.waiting.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn when_it_closes_who_waits_is_told_and_who_need_not_wait_is_served() {
    let places = Arc::new(Places::new(1));
    let held = take_as(&places, "one").await.expect("a place");
    let (waited, ()) = tokio::join!(take_as(&places, "two"), async { places.close() });
    assert_eq!(waited.map(drop), Err(NoPlace::Closed));
    assert_eq!(take_as(&places, "two").await.map(drop), Err(NoPlace::Closed));
    drop(held);
    assert!(take_as(&places, "two").await.is_ok());
}

#[test]
fn many_threads_lose_no_place_and_wake_everybody() {
    let places = Arc::new(Places::new(3));
    let work = |client: String| {
        let places = places.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                for _ in 0..3000 {
                    let place = take_as(&places, &client).await.expect("a place in time");
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
    assert_eq!((places.free(), places.row().turns.waiting()), (3, 0));
}
