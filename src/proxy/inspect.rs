//! A first look at an answer: is it a refusal of the token? No more of the body is held back than it takes to tell.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    upstream::{Answer, AnswerBody, Failure},
    wecom::reply::{ReplyScanner, Verdict, errcode_of, may_carry_errcode},
};

/// An answer whose errcode has not shown within this many bytes is taken for one without. A refusal is some hundred
/// bytes; 4096 requests in flight must not hold back 4096 large lists.
const LONGEST_LOOK: usize = 1024 * 1024;

/// An answer that was looked at.
pub(super) struct Inspected {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// What was held back while looking, in order.
    pub(super) held: VecDeque<Bytes>,
    /// What is still to come.
    pub(super) rest: AnswerBody,
    /// The top-level errcode, where one showed.
    pub(super) errcode: Option<i64>,
    /// How long the head took.
    pub(super) took: Duration,
    /// The request's place among those in flight, until its answer has ended.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

impl Inspected {
    /// An answer of the proxy's own, in WeCom's words.
    pub(super) fn local(body: Bytes) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=UTF-8"));
        let errcode = errcode_of(&body);
        Self {
            status: StatusCode::OK,
            headers,
            held: [body].into(),
            rest: AnswerBody::ended(),
            errcode,
            took: Duration::ZERO,
            place: None,
        }
    }

    /// The same, holding a place among the requests in flight.
    pub(super) fn at(self, place: OwnedSemaphorePermit) -> Self {
        Self { place: Some(place), ..self }
    }

    /// Takes in the rest of the body, if it is no longer than `most` bytes.
    pub(super) async fn collect(mut self, most: usize) -> Result<Self, Failure> {
        let mut length: usize = self.held.iter().map(Bytes::len).sum();
        while length < most
            && let Some(piece) = self.rest.data().await.transpose()?
        {
            length += piece.len();
            self.held.push_back(piece);
        }
        Ok(self)
    }

    /// The whole body, if all of it is here.
    pub(super) fn whole(&self) -> Option<Bytes> {
        self.rest.is_ended().then(|| self.held.iter().flatten().copied().collect())
    }
}

/// Reads on until the errcode has shown, or it is certain that there is none.
pub(super) async fn inspect(answer: Answer, took: Duration) -> Result<Inspected, Failure> {
    let Answer { status, headers, mut body } = answer;
    let (mut held, mut errcode) = (VecDeque::new(), None);
    if may_carry_errcode(status, &headers) {
        let mut scanner = ReplyScanner::new(&headers);
        let (mut verdict, mut length) = (scanner.verdict(), 0);
        while verdict == Verdict::Undecided && length < LONGEST_LOOK {
            let Some(piece) = body.data().await.transpose()? else {
                verdict = scanner.finish();
                break;
            };
            verdict = scanner.feed(&piece);
            length += piece.len();
            held.push_back(piece);
        }
        if let Verdict::Found(found) = verdict {
            errcode = Some(found);
        }
    }
    Ok(Inspected { status, headers, held, rest: body, errcode, took, place: None })
}
