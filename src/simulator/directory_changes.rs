//! The calls that change people, departments and tags, validated for the common mistakes of callers.

use serde_json::Value;

use super::company::{Company, Department, Person, Tag};
use super::response::ErrcodeJson;
use super::routes::{ApiRequest, HandlerResult};
use super::state::State;

/// `user/create`
pub(super) fn create_user(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let user = parse_body(request)?;
    let userid = non_empty_text(&user, "userid").ok_or(41009)?;
    if state.company.has_user(&userid) {
        return Err(60102);
    }
    let mut person = Person { userid, departments: vec![1], ..Person::default() };
    apply_user_fields(&mut person, &state.company, &user)?;
    if person.name.is_empty() {
        return Err(40035);
    }
    state.company.people.push(person);
    ErrcodeJson::new(0, "created").into()
}

/// `user/update`
pub(super) fn update_user(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let user = parse_body(request)?;
    let userid = non_empty_text(&user, "userid").ok_or(41009)?;
    let at = state.company.people.iter().position(|known| known.userid == userid).ok_or(60111)?;
    let mut person = state.company.people.remove(at);
    let result = apply_user_fields(&mut person, &state.company, &user);
    state.company.people.insert(at, person);
    result?;
    ErrcodeJson::new(0, "updated").into()
}

/// `user/delete?userid=`
pub(super) fn delete_user(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let userid = request.query.non_empty("userid").ok_or(41009)?;
    if !state.company.has_user(&userid) {
        return Err(60111);
    }
    state.company.people.retain(|person| person.userid != userid);
    state.company.tags.iter_mut().for_each(|tag| tag.users.retain(|user| *user != userid));
    ErrcodeJson::new(0, "deleted").into()
}

/// `department/create`
pub(super) fn create_department(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let wanted = parse_body(request)?;
    let departments = &mut state.company.departments;
    let name = non_empty_text(&wanted, "name").ok_or(40035)?;
    let parent = wanted["parentid"].as_u64().ok_or(40035)?;
    let next_id = departments.iter().map(|known| known.id).max().unwrap_or(0) + 1;
    let id = wanted["id"].as_u64().unwrap_or(next_id);
    if !departments.iter().any(|known| known.id == parent) {
        return Err(60004);
    }
    if departments.iter().any(|known| known.id == id || known.parent == parent && known.name == name) {
        return Err(60008);
    }
    let name_en = non_empty_text(&wanted, "name_en").unwrap_or_default();
    departments.push(Department { id, name, name_en, parent, leader: None });
    ErrcodeJson::new(0, "created").with("id", id).into()
}

/// `department/update`
pub(super) fn update_department(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let wanted = parse_body(request)?;
    let mut departments = state.company.departments.iter_mut();
    let found = departments.find(|known| wanted["id"] == known.id).ok_or(60123)?;
    found.name = non_empty_text(&wanted, "name").unwrap_or(std::mem::take(&mut found.name));
    ErrcodeJson::new(0, "updated").into()
}

/// `department/delete?id=`
pub(super) fn delete_department(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let company = &mut state.company;
    let id = request.query.number("id").filter(|id| company.has_department(*id)).ok_or(60123)?;
    if company.people.iter().any(|person| person.departments.contains(&id)) {
        return Err(60005);
    }
    if company.departments.iter().any(|known| known.parent == id) {
        return Err(60006);
    }
    company.departments.retain(|known| known.id != id);
    ErrcodeJson::new(0, "deleted").into()
}

/// `tag/create`
pub(super) fn create_tag(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let wanted = parse_body(request)?;
    let tags = &mut state.company.tags;
    let name = non_empty_text(&wanted, "tagname").ok_or(40035)?;
    let next_id = tags.iter().map(|known| known.id).max().unwrap_or(0) + 1;
    let id = wanted["tagid"].as_u64().unwrap_or(next_id);
    if tags.iter().any(|known| known.id == id || known.name == name) {
        return Err(40071);
    }
    tags.push(Tag { id, name, users: Vec::new(), parties: Vec::new() });
    ErrcodeJson::new(0, "created").with("tagid", id).into()
}

/// `tag/update`
pub(super) fn update_tag(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let wanted = parse_body(request)?;
    let name = non_empty_text(&wanted, "tagname").ok_or(40035)?;
    find_tag(&mut state.company, &wanted)?.name = name;
    ErrcodeJson::new(0, "updated").into()
}

/// `tag/delete?tagid=`
pub(super) fn delete_tag(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let wanted = request.query.number("tagid");
    let tags = &mut state.company.tags;
    tags.remove(tags.iter().position(|known| Some(known.id) == wanted).ok_or(40068)?);
    ErrcodeJson::new(0, "deleted").into()
}

/// `tag/addtagusers`. Unknown userids are listed in `invalidlist`.
pub(super) fn add_tag_users(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let wanted = parse_body(request)?;
    let (known, unknown) = partition_users(&state.company, &wanted);
    let tag = find_tag(&mut state.company, &wanted)?;
    tag.users.retain(|user| !known.contains(user));
    tag.users.extend(known.iter().cloned());
    tag_users_result(&known, &unknown)
}

/// `tag/deltagusers`
pub(super) fn remove_tag_users(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let wanted = parse_body(request)?;
    let (known, unknown) = partition_users(&state.company, &wanted);
    find_tag(&mut state.company, &wanted)?.users.retain(|user| !known.contains(user));
    tag_users_result(&known, &unknown)
}

fn parse_body(request: &ApiRequest<'_>) -> Result<Value, i64> {
    serde_json::from_slice(&request.body()).map_err(|_| 40035)
}

fn non_empty_text(object: &Value, key: &str) -> Option<String> {
    object[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// Overwrites the person's fields that the request contains.
fn apply_user_fields(person: &mut Person, company: &Company, request: &Value) -> Result<(), i64> {
    if let Some(departments) = request.get("department") {
        // A single number is accepted too.
        let single = std::slice::from_ref(departments);
        let ids = departments.as_array().map_or(single, Vec::as_slice).iter().map(Value::as_u64);
        let ids: Option<Vec<u64>> = ids.collect();
        let known = |ids: &Vec<u64>| !ids.is_empty() && ids.iter().all(|id| company.has_department(*id));
        person.departments = ids.filter(known).ok_or(60123)?;
    }
    for (key, field) in [
        ("name", &mut person.name),
        ("position", &mut person.position),
        ("mobile", &mut person.mobile),
        ("email", &mut person.email),
    ] {
        if let Some(text) = non_empty_text(request, key) {
            *field = text;
        }
    }
    Ok(())
}

fn find_tag<'a>(company: &'a mut Company, wanted: &Value) -> Result<&'a mut Tag, i64> {
    company.tags.iter_mut().find(|known| wanted["tagid"] == known.id).ok_or(40068)
}

/// The known and the unknown userids of a list.
fn partition_users(company: &Company, wanted: &Value) -> (Vec<String>, Vec<String>) {
    let userids = wanted["userlist"].as_array().into_iter().flatten().filter_map(Value::as_str);
    userids.map(str::to_owned).partition(|user| company.has_user(user))
}

fn tag_users_result(known: &[String], unknown: &[String]) -> HandlerResult {
    match (known.is_empty(), unknown.is_empty()) {
        (true, _) => Err(40070),
        (false, true) => ErrcodeJson::ok().into(),
        (false, false) => ErrcodeJson::ok().with("invalidlist", unknown.join("|")).into(),
    }
}
