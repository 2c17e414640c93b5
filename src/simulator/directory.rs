//! The calls that read people, departments and tags.

use serde::Serialize;
use serde_json::{Value, json};

use super::answer::{Answer, Json};
use super::company::{Company, Person, Tag};
use super::routes::Sent;
use super::state::State;

/// `user/get?userid=`
pub(super) fn user(state: &mut State, sent: &Sent<'_>) -> Answer {
    let Some(userid) = sent.query.value("userid").filter(|id| !id.is_empty()) else {
        return Json::new(41009, "").into();
    };
    match state.company.people.iter().find(|person| person.userid == userid) {
        Some(person) => {
            person.details().into_iter().fold(Json::ok(), |json, (key, value)| json.with(key, value)).into()
        }
        None => Json::new(60111, "").into(),
    }
}

/// `user/simplelist?department_id=&fetch_child=`
pub(super) fn simple_users(state: &mut State, sent: &Sent<'_>) -> Answer {
    user_list(&state.company, sent, Person::simple)
}

/// `user/list?department_id=&fetch_child=`
pub(super) fn users(state: &mut State, sent: &Sent<'_>) -> Answer {
    let full = |person: &Person| {
        person.details().into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Value>()
    };
    user_list(&state.company, sent, full)
}

/// `department/list?id=`
pub(super) fn departments(state: &mut State, sent: &Sent<'_>) -> Answer {
    let root = match sent.query.value("id").filter(|id| !id.is_empty()) {
        Some(id) => id.parse().ok().filter(|id| state.company.has_department(*id)).ok_or(60123),
        None => Ok(1),
    };
    let root = match root {
        Ok(root) => root,
        Err(errcode) => return Json::new(errcode, "").into(),
    };
    let known = state.company.departments.iter();
    let below = known.filter(|department| department.id == root || department.parent == root);
    let list: Vec<Value> = below
        .map(|department| {
            json!({
                "id": department.id,
                "name": department.name,
                "name_en": department.name_en,
                "department_leader": Vec::from_iter(&department.leader),
                "parentid": department.parent,
                "order": 100_000 - department.id,
            })
        })
        .collect();
    Json::ok().with("department", list).into()
}

/// `tag/list`
pub(super) fn tags(state: &mut State, _: &Sent<'_>) -> Answer {
    let shown = |tag: &Tag| json!({ "tagid": tag.id, "tagname": tag.name });
    let list: Vec<Value> = state.company.tags.iter().map(shown).collect();
    Json::ok().with("taglist", list).into()
}

/// `tag/get?tagid=`
pub(super) fn tag(state: &mut State, sent: &Sent<'_>) -> Answer {
    let wanted = sent.query.value("tagid").and_then(|id| id.parse::<u64>().ok());
    let Some(tag) = state.company.tags.iter().find(|tag| Some(tag.id) == wanted) else {
        return Json::new(40068, "").into();
    };
    let people = state.company.people.iter().filter(|person| tag.users.contains(&person.userid));
    let users: Vec<Value> =
        people.map(|person| json!({ "userid": person.userid, "name": person.name })).collect();
    Json::ok().with("tagname", &tag.name).with("userlist", users).with("partylist", &tag.parties).into()
}

fn user_list<T: Serialize>(company: &Company, sent: &Sent<'_>, show: impl Fn(&Person) -> T) -> Answer {
    let wanted = sent.query.value("department_id").and_then(|id| id.parse::<u64>().ok());
    let Some(wanted) = wanted.filter(|id| company.has_department(*id)) else {
        return Json::new(60123, "").into();
    };
    let with_children = sent.query.value("fetch_child").as_deref() == Some("1");
    let child = |id: &u64| company.departments.iter().any(|known| known.id == *id && known.parent == wanted);
    let inside = |id: &u64| *id == wanted || with_children && child(id);
    let people = company.people.iter().filter(|person| person.departments.iter().any(inside));
    Json::ok().with("userlist", people.map(show).collect::<Vec<_>>()).into()
}
