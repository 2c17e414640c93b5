//! A small company: people, departments, tags.

use serde::Serialize;
use serde_json::{Value, json};

use super::answer::{Answer, Json};
use super::routes::Sent;
use super::state::State;

struct Person {
    userid: &'static str,
    name: &'static str,
    departments: &'static [u64],
    position: &'static str,
    leads: bool,
}

struct Department {
    id: u64,
    name: &'static str,
    name_en: &'static str,
    parent: u64,
    leader: &'static str,
}

struct Tag {
    id: u64,
    name: &'static str,
    users: &'static [&'static str],
    parties: &'static [u64],
}

const PEOPLE: &[Person] = &[
    Person {
        userid: "zhangsan", name: "张三", departments: &[2], position: "人力资源经理", leads: true
    },
    Person { userid: "lisi", name: "李四", departments: &[2], position: "招聘专员", leads: false },
    Person { userid: "wangwu", name: "王五", departments: &[3], position: "运维主管", leads: true },
    Person {
        userid: "zhaomin", name: "赵敏", departments: &[3, 4], position: "运维工程师", leads: false
    },
    Person {
        userid: "chenchen", name: "陈晨", departments: &[4], position: "后端工程师", leads: false
    },
    Person { userid: "liuyang", name: "刘洋", departments: &[1, 4], position: "技术总监", leads: true },
];

const DEPARTMENTS: &[Department] = &[
    Department {
        id: 1, name: "示例科技有限公司", name_en: "Example Ltd", parent: 0, leader: "liuyang"
    },
    Department { id: 2, name: "人力资源部", name_en: "HR", parent: 1, leader: "zhangsan" },
    Department { id: 3, name: "运维部", name_en: "Operations", parent: 1, leader: "wangwu" },
    Department { id: 4, name: "研发部", name_en: "R&D", parent: 1, leader: "liuyang" },
];

const TAGS: &[Tag] = &[
    Tag { id: 1, name: "值班", users: &["wangwu", "zhaomin"], parties: &[] },
    Tag { id: 2, name: "新员工", users: &["chenchen"], parties: &[2] },
];

/// Whether there is a person with this userid.
pub(super) fn knows(userid: &str) -> bool {
    PEOPLE.iter().any(|person| person.userid == userid)
}

/// `user/get?userid=`
pub(super) fn user(_: &mut State, sent: &Sent<'_>) -> Answer {
    let Some(userid) = sent.query.value("userid").filter(|id| !id.is_empty()) else {
        return Json::new(41009, "").into();
    };
    match PEOPLE.iter().find(|person| person.userid == userid) {
        Some(person) => {
            details(person).into_iter().fold(Json::ok(), |json, (key, value)| json.with(key, value)).into()
        }
        None => Json::new(60111, "").into(),
    }
}

/// `user/simplelist?department_id=&fetch_child=`
pub(super) fn simple_users(_: &mut State, sent: &Sent<'_>) -> Answer {
    let simple = |person: &Person| {
        json!({
            "userid": person.userid,
            "name": person.name,
            "department": person.departments,
            "open_userid": "",
        })
    };
    user_list(sent, simple)
}

/// `user/list?department_id=&fetch_child=`
pub(super) fn users(_: &mut State, sent: &Sent<'_>) -> Answer {
    let full = |person: &Person| {
        details(person).into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Value>()
    };
    user_list(sent, full)
}

/// `department/list?id=`
pub(super) fn departments(_: &mut State, sent: &Sent<'_>) -> Answer {
    let root = match sent.query.value("id").filter(|id| !id.is_empty()) {
        Some(id) => id.parse().ok().filter(|id| exists(*id)).ok_or(60123),
        None => Ok(1),
    };
    let root = match root {
        Ok(root) => root,
        Err(errcode) => return Json::new(errcode, "").into(),
    };
    let below = DEPARTMENTS.iter().filter(|department| department.id == root || department.parent == root);
    let list: Vec<Value> = below
        .map(|department| {
            json!({
                "id": department.id,
                "name": department.name,
                "name_en": department.name_en,
                "department_leader": [department.leader],
                "parentid": department.parent,
                "order": 100_000 - department.id,
            })
        })
        .collect();
    Json::ok().with("department", list).into()
}

/// `tag/list`
pub(super) fn tags(_: &mut State, _: &Sent<'_>) -> Answer {
    let list: Vec<Value> = TAGS.iter().map(|tag| json!({ "tagid": tag.id, "tagname": tag.name })).collect();
    Json::ok().with("taglist", list).into()
}

/// `tag/get?tagid=`
pub(super) fn tag(_: &mut State, sent: &Sent<'_>) -> Answer {
    let wanted = sent.query.value("tagid").and_then(|id| id.parse::<u64>().ok());
    let Some(tag) = TAGS.iter().find(|tag| Some(tag.id) == wanted) else {
        return Json::new(40068, "").into();
    };
    let people = PEOPLE.iter().filter(|person| tag.users.contains(&person.userid));
    let users: Vec<Value> =
        people.map(|person| json!({ "userid": person.userid, "name": person.name })).collect();
    Json::ok().with("tagname", tag.name).with("userlist", users).with("partylist", tag.parties).into()
}

fn user_list<T: Serialize>(sent: &Sent<'_>, show: impl Fn(&Person) -> T) -> Answer {
    let wanted = sent.query.value("department_id").and_then(|id| id.parse::<u64>().ok());
    let Some(wanted) = wanted.filter(|id| exists(*id)) else {
        return Json::new(60123, "").into();
    };
    let with_children = sent.query.value("fetch_child").as_deref() == Some("1");
    let inside = |id: &u64| {
        *id == wanted
            || with_children && DEPARTMENTS.iter().any(|known| known.id == *id && known.parent == wanted)
    };
    let people = PEOPLE.iter().filter(|person| person.departments.iter().any(inside));
    Json::ok().with("userlist", people.map(show).collect::<Vec<_>>()).into()
}

fn exists(department: u64) -> bool {
    DEPARTMENTS.iter().any(|known| known.id == department)
}

fn details(person: &Person) -> [(&'static str, Value); 14] {
    let leads = person.departments.iter().map(|_| u8::from(person.leads)).collect::<Vec<_>>();
    [
        ("userid", json!(person.userid)),
        ("name", json!(person.name)),
        ("department", json!(person.departments)),
        ("order", json!(vec![0; person.departments.len()])),
        ("position", json!(person.position)),
        ("mobile", json!("13800000000")),
        ("gender", json!("1")),
        ("email", json!(format!("{}@example.com", person.userid))),
        ("is_leader_in_dept", json!(leads)),
        ("avatar", json!("")),
        ("telephone", json!("")),
        ("enable", json!(1)),
        ("status", json!(1)),
        ("main_department", json!(person.departments[0])),
    ]
}
