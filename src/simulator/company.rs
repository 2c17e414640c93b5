//! The data of a small company that calls read and change: people, departments, tags.

use serde_json::{Value, json};

/// The current people, departments and tags.
pub(super) struct Company {
    pub(super) people: Vec<Person>,
    pub(super) departments: Vec<Department>,
    pub(super) tags: Vec<Tag>,
}

#[derive(Default)]
pub(super) struct Person {
    pub(super) userid: String,
    pub(super) name: String,
    pub(super) departments: Vec<u64>,
    pub(super) position: String,
    pub(super) mobile: String,
    pub(super) email: String,
    pub(super) is_leader: bool,
}

pub(super) struct Department {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) name_en: String,
    pub(super) parent: u64,
    pub(super) leader: Option<String>,
}

pub(super) struct Tag {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) users: Vec<String>,
    pub(super) parties: Vec<u64>,
}

impl Default for Company {
    fn default() -> Self {
        let person = |userid: &str, name: &str, departments: &[u64], position: &str, is_leader| Person {
            userid: userid.to_owned(),
            name: name.to_owned(),
            departments: departments.to_vec(),
            position: position.to_owned(),
            mobile: "13800000000".to_owned(),
            email: format!("{userid}@example.com"),
            is_leader,
        };
        let department = |id, name: &str, name_en: &str, parent, leader: &str| Department {
            id,
            name: name.to_owned(),
            name_en: name_en.to_owned(),
            parent,
            leader: Some(leader.to_owned()),
        };
        let tag = |id, name: &str, users: &[&str], parties: &[u64]| Tag {
            id,
            name: name.to_owned(),
            users: users.iter().map(|user| (*user).to_owned()).collect(),
            parties: parties.to_vec(),
        };
        Self {
            people: vec![
                person("zhangsan", "张三", &[2], "人力资源经理", true),
                person("lisi", "李四", &[2], "招聘专员", false),
                person("wangwu", "王五", &[3], "运维主管", true),
                person("zhaomin", "赵敏", &[3, 4], "运维工程师", false),
                person("chenchen", "陈晨", &[4], "后端工程师", false),
                person("liuyang", "刘洋", &[1, 4], "技术总监", true),
            ],
            departments: vec![
                department(1, "示例科技有限公司", "Example Ltd", 0, "liuyang"),
                department(2, "人力资源部", "HR", 1, "zhangsan"),
                department(3, "运维部", "Operations", 1, "wangwu"),
                department(4, "研发部", "R&D", 1, "liuyang"),
            ],
            tags: vec![tag(1, "值班", &["wangwu", "zhaomin"], &[]), tag(2, "新员工", &["chenchen"], &[2])],
        }
    }
}

impl Company {
    /// Whether a person has this userid.
    pub(super) fn has_user(&self, userid: &str) -> bool {
        self.people.iter().any(|person| person.userid == userid)
    }

    pub(super) fn has_department(&self, id: u64) -> bool {
        self.departments.iter().any(|known| known.id == id)
    }
}

impl Person {
    pub(super) fn summary(&self) -> Value {
        json!({
            "userid": self.userid,
            "name": self.name,
            "department": self.departments,
            "open_userid": "",
        })
    }

    pub(super) fn detail_members(&self) -> [(&'static str, Value); 14] {
        let is_leader = self.departments.iter().map(|_| u8::from(self.is_leader)).collect::<Vec<_>>();
        [
            ("userid", json!(self.userid)),
            ("name", json!(self.name)),
            ("department", json!(self.departments)),
            ("order", json!(vec![0; self.departments.len()])),
            ("position", json!(self.position)),
            ("mobile", json!(self.mobile)),
            ("gender", json!("1")),
            ("email", json!(self.email)),
            ("is_leader_in_dept", json!(is_leader)),
            ("avatar", json!("")),
            ("telephone", json!("")),
            ("enable", json!(1)),
            ("status", json!(1)),
            ("main_department", json!(self.departments.first())),
        ]
    }
}
