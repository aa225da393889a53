//! A nameserver for the demonstration, which runs where there may be none: it answers from a zone fragment of
//! `carousel-server zone`, on the loopback interface only, by UDP. For real zones there are knot, BIND and NSD.

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::{Name, Record};
use hickory_proto::serialize::txt::Parser;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};

/// More than any question takes.
const QUESTION_LEN: usize = 1232;

/// Answers in a thread of its own for as long as the process lives. Where it can be asked.
pub fn start(fragment: &str) -> io::Result<SocketAddr> {
    let parsed = Parser::new(fragment, None, Some(Name::root())).parse();
    let (_, sets) = parsed.map_err(|e| io::Error::other(format!("the zone cannot be read: {e}")))?;
    let records: Vec<Record> = sets.values().flat_map(|set| set.records_without_rrsigs().cloned()).collect();
    let socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0))?;
    let address = socket.local_addr()?;
    std::thread::spawn(move || serve(&socket, &records));
    Ok(address)
}

fn serve(socket: &UdpSocket, records: &[Record]) {
    let mut question = [0; QUESTION_LEN];
    // Nobody is told of an error: a resolver asks again.
    while let Ok((len, from)) = socket.recv_from(&mut question) {
        let answer = Message::from_vec(&question[..len]).ok().and_then(|question| answer(&question, records));
        if let Some(answer) = answer {
            let _ = socket.send_to(&answer, from);
        }
    }
}

fn answer(question: &Message, records: &[Record]) -> Option<Vec<u8>> {
    let query = question.queries.first()?;
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    answer.metadata.authoritative = true;
    answer.metadata.recursion_desired = question.metadata.recursion_desired;
    let mut here = records.iter().filter(|record| record.name == *query.name()).peekable();
    if here.peek().is_none() {
        answer.metadata.response_code = ResponseCode::NXDomain;
    }
    answer.add_query(query.clone());
    answer.add_answers(here.filter(|record| record.record_type() == query.query_type()).cloned());
    answer.to_vec().ok()
}
