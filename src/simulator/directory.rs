//! The calls that read people, departments and tags.

use serde::Serialize;
use serde_json::{Value, json};

use super::company::{Company, Person, Tag};
use super::response::{ErrcodeJson, SimulatedResponse};
use super::routes::ApiRequest;
use super::state::State;

/// `user/get?userid=`
pub(super) fn get_user(state: &mut State, request: &ApiRequest<'_>) -> SimulatedResponse {
    let Some(userid) = request.query.value("userid").filter(|id| !id.is_empty()) else {
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
pub(super) fn list_users_simple(state: &mut State, request: &ApiRequest<'_>) -> SimulatedResponse {
    department_users(&state.company, request, Person::summary)
}

/// `user/list?department_id=&fetch_child=`
pub(super) fn list_users(state: &mut State, request: &ApiRequest<'_>) -> SimulatedResponse {
    let detail = |person: &Person| {
        person.detail_members().into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Value>()
    };
    department_users(&state.company, request, detail)
}

/// `department/list?id=`
pub(super) fn list_departments(state: &mut State, request: &ApiRequest<'_>) -> SimulatedResponse {
    let root = match request.query.value("id").filter(|id| !id.is_empty()) {
        Some(id) => id.parse().ok().filter(|id| state.company.has_department(*id)).ok_or(60123),
        None => Ok(1),
    };
    let root = match root {
        Ok(root) => root,
        Err(errcode) => return ErrcodeJson::new(errcode, "").into(),
    };
    let departments = state.company.departments.iter();
    let listed = departments.filter(|department| department.id == root || department.parent == root);
    let list: Vec<Value> = listed
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
    let to_json = |tag: &Tag| json!({ "tagid": tag.id, "tagname": tag.name });
    let list: Vec<Value> = state.company.tags.iter().map(to_json).collect();
    ErrcodeJson::ok().with("taglist", list).into()
}

/// `tag/get?tagid=`
pub(super) fn get_tag(state: &mut State, request: &ApiRequest<'_>) -> SimulatedResponse {
    let wanted = request.query.value("tagid").and_then(|id| id.parse::<u64>().ok());
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
    request: &ApiRequest<'_>,
    to_json: impl Fn(&Person) -> T,
) -> SimulatedResponse {
    let department_id = request.query.value("department_id").and_then(|id| id.parse::<u64>().ok());
    let Some(department_id) = department_id.filter(|id| company.has_department(*id)) else {
        return ErrcodeJson::new(60123, "").into();
    };
    let with_children = request.query.value("fetch_child").as_deref() == Some("1");
    let is_child =
        |id: &u64| company.departments.iter().any(|known| known.id == *id && known.parent == department_id);
    let selected = |id: &u64| *id == department_id || with_children && is_child(id);
    let people = company.people.iter().filter(|person| person.departments.iter().any(selected));
    ErrcodeJson::ok().with("userlist", people.map(to_json).collect::<Vec<_>>()).into()
}
