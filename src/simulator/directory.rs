//! The calls that read people, departments and tags.

use serde::Serialize;
use serde_json::{Value, json};

use super::company::{Company, Person, Tag};
use super::response::ErrcodeJson;
use super::routes::{ApiRequest, HandlerResult};
use super::state::State;

/// `user/get?userid=`
pub(super) fn get_user(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let userid = request.query.non_empty("userid").ok_or(41009)?;
    let person = state.company.people.iter().find(|person| person.userid == userid).ok_or(60111)?;
    let members = person.detail_members().into_iter();
    members.fold(ErrcodeJson::ok(), |json, (key, value)| json.with(key, value)).into()
}

/// `user/simplelist?department_id=&fetch_child=`
pub(super) fn list_users_simple(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    department_users(&state.company, request, Person::summary)
}

/// `user/list?department_id=&fetch_child=`
pub(super) fn list_users(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let detail = |person: &Person| {
        person.detail_members().into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Value>()
    };
    department_users(&state.company, request, detail)
}

/// `department/list?id=`
pub(super) fn list_departments(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let root = match request.query.non_empty("id") {
        Some(id) => id.parse().ok().filter(|id| state.company.has_department(*id)).ok_or(60123)?,
        None => 1,
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
pub(super) fn list_tags(state: &mut State, _: &ApiRequest<'_>) -> HandlerResult {
    let to_json = |tag: &Tag| json!({ "tagid": tag.id, "tagname": tag.name });
    let list: Vec<Value> = state.company.tags.iter().map(to_json).collect();
    ErrcodeJson::ok().with("taglist", list).into()
}

/// `tag/get?tagid=`
pub(super) fn get_tag(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let wanted = request.query.number("tagid");
    let tag = state.company.tags.iter().find(|tag| Some(tag.id) == wanted).ok_or(40068)?;
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
) -> HandlerResult {
    let department_id = request.query.number("department_id");
    let department_id = department_id.filter(|id| company.has_department(*id)).ok_or(60123)?;
    let with_children = request.query.value("fetch_child").as_deref() == Some("1");
    let is_child =
        |id: &u64| company.departments.iter().any(|known| known.id == *id && known.parent == department_id);
    let selected = |id: &u64| *id == department_id || with_children && is_child(id);
    let people = company.people.iter().filter(|person| person.departments.iter().any(selected));
    ErrcodeJson::ok().with("userlist", people.map(to_json).collect::<Vec<_>>()).into()
}
