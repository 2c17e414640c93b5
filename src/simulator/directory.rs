//! The calls that read people, departments and tags.

use serde::Serialize;
use serde_json::{Value, json};

use super::company::{Company, Person, Tag};
use super::response::{ErrcodeJson, SimulatedResponse};
use super::routes::ApiRequest;
use super::state::State;

/// `user/get?userid=`
pub(super) fn get_user(state: &mut State, sent: &ApiRequest<'_>) -> SimulatedResponse {
    let Some(userid) = sent.query.value("userid").filter(|id| !id.is_empty()) else {
        return ErrcodeJson::new(41009, "").into();
    };
    match state.company.people.iter().find(|person| person.userid == userid) {
        Some(person) => person
            .detail_members()
            .into_iter()
            .fold(ErrcodeJson::ok(), |json, (key, value)| json.with(key, value))
            .into(),
        None => ErrcodeJson::new(60111, "").into(),
    }
}

/// `user/simplelist?department_id=&fetch_child=`
pub(super) fn list_users_simple(state: &mut State, sent: &ApiRequest<'_>) -> SimulatedResponse {
    department_users(&state.company, sent, Person::summary)
}

/// `user/list?department_id=&fetch_child=`
pub(super) fn list_users(state: &mut State, sent: &ApiRequest<'_>) -> SimulatedResponse {
    let full = |person: &Person| {
        person.detail_members().into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Value>()
    };
    department_users(&state.company, sent, full)
}

/// `department/list?id=`
pub(super) fn list_departments(state: &mut State, sent: &ApiRequest<'_>) -> SimulatedResponse {
    let root = match sent.query.value("id").filter(|id| !id.is_empty()) {
        Some(id) => id.parse().ok().filter(|id| state.company.has_department(*id)).ok_or(60123),
        None => Ok(1),
    };
    let root = match root {
        Ok(root) => root,
        Err(errcode) => return ErrcodeJson::new(errcode, "").into(),
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
    ErrcodeJson::ok().with("department", list).into()
}

/// `tag/list`
pub(super) fn list_tags(state: &mut State, _: &ApiRequest<'_>) -> SimulatedResponse {
    let shown = |tag: &Tag| json!({ "tagid": tag.id, "tagname": tag.name });
    let list: Vec<Value> = state.company.tags.iter().map(shown).collect();
    ErrcodeJson::ok().with("taglist", list).into()
}

/// `tag/get?tagid=`
pub(super) fn get_tag(state: &mut State, sent: &ApiRequest<'_>) -> SimulatedResponse {
    let wanted = sent.query.value("tagid").and_then(|id| id.parse::<u64>().ok());
    let Some(tag) = state.company.tags.iter().find(|tag| Some(tag.id) == wanted) else {
        return ErrcodeJson::new(40068, "").into();
    };
    let people = state.company.people.iter().filter(|person| tag.users.contains(&person.userid));
    let users: Vec<Value> =
        people.map(|person| json!({ "userid": person.userid, "name": person.name })).collect();
    ErrcodeJson::ok()
        .with("tagname", &tag.name)
        .with("userlist", users)
        .with("partylist", &tag.parties)
        .into()
}

fn department_users<T: Serialize>(
    company: &Company,
    sent: &ApiRequest<'_>,
    show: impl Fn(&Person) -> T,
) -> SimulatedResponse {
    let wanted = sent.query.value("department_id").and_then(|id| id.parse::<u64>().ok());
    let Some(wanted) = wanted.filter(|id| company.has_department(*id)) else {
        return ErrcodeJson::new(60123, "").into();
    };
    let with_children = sent.query.value("fetch_child").as_deref() == Some("1");
    let child = |id: &u64| company.departments.iter().any(|known| known.id == *id && known.parent == wanted);
    let inside = |id: &u64| *id == wanted || with_children && child(id);
    let people = company.people.iter().filter(|person| person.departments.iter().any(inside));
    ErrcodeJson::ok().with("userlist", people.map(show).collect::<Vec<_>>()).into()
}
