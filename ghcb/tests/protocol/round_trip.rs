//! Every request through both halves and back.

use crate::common::{requests, session, snp};
use sevlab_arch::vector::Vector;
use sevlab_arch::vmcb::EventInjection;
use sevlab_ghcb::guest::{Failure, negotiate};
use sevlab_ghcb::hv::{self, Refusal, WrongShape};
use sevlab_ghcb::{ErrorCode, FieldNotValid, Ghcb, IoSize, Request, Response, Shape};

fn response(request: &Request) -> Option<Response> {
    Some(match request.shape() {
        Shape::Done => Response::Done,
        Shape::Value => Response::Value(0x5a),
        Shape::Wide => Response::Wide(0x0123_4567_89ab_cdef),
        Shape::Rdtscp => Response::Rdtscp {
            tsc: u64::MAX,
            aux: 9,
        },
        Shape::Cpuid => Response::Cpuid {
            eax: 1,
            ebx: 2,
            ecx: 3,
            edx: u32::MAX,
        },
        Shape::Info => Response::Info(0x1_0000_0002),
        Shape::Certificates => Response::Certificates {
            info: 1 << 32,
            pages: Some(6),
        },
        Shape::Nothing => return None,
    })
}

#[test]
fn every_request_arrives_and_every_response_returns() {
    for request in requests() {
        let mut page = Ghcb::default();
        request.fill(&mut page, &session(2));
        assert_eq!(hv::validate(&page, &snp()), Ok(request));
        assert_eq!(page.sw_exit_code(), Ok(request.exit_code().0));

        let Some(response) = response(&request) else {
            continue;
        };
        assert_eq!(
            hv::respond(&mut page, &request, &response),
            Ok(()),
            "{request:?}"
        );
        assert_eq!(request.finish(&page), Ok(response), "{request:?}");
    }
}

#[test]
fn a_refused_request_tells_why() {
    let refusals = [
        Refusal::NotRegistered {
            ghcb: crate::common::GHCB,
        },
        Refusal::BadUsage {
            usage: 1,
            version: 2,
        },
        Refusal::BadScratch {
            gpa: crate::common::GHCB,
            len: 1,
        },
        Refusal::MissingInput(FieldNotValid {
            field: sevlab_arch::ghcb::Field::RAX,
        }),
        Refusal::InvalidInput {
            code: Request::Rdtsc.exit_code(),
            value: 1,
        },
        Refusal::InvalidEvent {
            code: Request::Rdtsc.exit_code(),
        },
    ];
    for (refusal, code) in refusals.iter().zip(1..) {
        for request in requests() {
            let mut page = Ghcb::default();
            request.fill(&mut page, &session(2));
            hv::refuse(&mut page, refusal);
            assert_eq!(
                request.finish(&page),
                Err(Failure::Refused {
                    code: ErrorCode(code)
                })
            );
        }
    }
}

#[test]
fn only_plausible_exceptions_are_believed() {
    let request = Request::MsrRead { msr: 0x1234 };
    let answer = |event: EventInjection| {
        let mut page = Ghcb::default();
        request.fill(&mut page, &session(2));
        hv::raise(&mut page, event);
        request.finish(&page)
    };
    let gp = EventInjection::exception(Vector::GP.0, Some(0));
    let ud = EventInjection::exception(Vector::UD.0, None);
    assert_eq!(
        answer(gp),
        Err(Failure::Exception {
            vector: Vector::GP,
            error: Some(0)
        })
    );
    assert_eq!(
        answer(ud),
        Err(Failure::Exception {
            vector: Vector::UD,
            error: None
        })
    );
    for event in [
        EventInjection::exception(Vector::PF.0, Some(2)),
        EventInjection::exception(Vector::GP.0, None),
        EventInjection::exception(Vector::UD.0, Some(0)),
        EventInjection::interrupt(Vector::GP.0),
        EventInjection(gp.0 & !EventInjection::VALID),
        EventInjection(0),
    ] {
        assert_eq!(answer(event), Err(Failure::BadEvent { event: event.0 }));
    }
}

#[test]
fn a_response_without_its_fields_is_an_error() {
    for request in requests() {
        let Some(response) = response(&request) else {
            continue;
        };
        let mut page = Ghcb::default();
        request.fill(&mut page, &session(2));
        hv::respond(&mut page, &request, &response).unwrap();
        page.clear_valid();
        assert!(
            matches!(request.finish(&page), Err(Failure::Missing(_))),
            "{request:?}"
        );
        page.set_sw_exit_info1(0);
        page.set_sw_exit_info2(0);
        let needs_fields = matches!(
            request.shape(),
            Shape::Value | Shape::Wide | Shape::Rdtscp | Shape::Cpuid
        );
        assert_eq!(
            matches!(request.finish(&page), Err(Failure::Missing(_))),
            needs_fields,
            "{request:?}"
        );
    }
}

#[test]
fn stale_registers_of_the_request_are_no_response() {
    let request = Request::Cpuid {
        leaf: 1,
        subleaf: 0,
        xcr0: None,
        xss: None,
    };
    let mut page = Ghcb::default();
    request.fill(&mut page, &session(2));
    hv::respond(&mut page, &request, &Response::Done).unwrap_err();
    // A hypervisor that only clears the information fields leaves EBX and EDX unmarked.
    page.set_sw_exit_info1(0);
    assert!(matches!(request.finish(&page), Err(Failure::Missing(_))));
}

#[test]
fn unknown_answers_and_wrong_shapes() {
    let request = Request::Wbinvd;
    let mut page = Ghcb::default();
    request.fill(&mut page, &session(2));
    page.set_sw_exit_info1(3);
    assert_eq!(
        request.finish(&page),
        Err(Failure::UnknownAnswer { info1: 3 })
    );
    let wrong = WrongShape {
        wanted: Shape::Done,
        got: Shape::Info,
    };
    assert_eq!(
        hv::respond(&mut page, &request, &Response::Info(1)),
        Err(wrong)
    );

    let end = Request::Terminate { set: 0, reason: 0 };
    end.fill(&mut page, &session(2));
    page.set_sw_exit_info1(0);
    assert_eq!(end.finish(&page), Err(Failure::NotTerminated));
}

#[test]
fn port_values_keep_to_their_width() {
    let request = Request::IoIn {
        port: 0x60,
        size: IoSize::Byte,
    };
    let mut page = Ghcb::default();
    request.fill(&mut page, &session(2));
    hv::respond(&mut page, &request, &Response::Value(0x1234)).unwrap();
    assert_eq!(page.rax(), Ok(0x34));
    page.set_rax(0xffff_ff12);
    assert_eq!(request.finish(&page), Ok(Response::Value(0x12)));
}

#[test]
fn versions_are_negotiated() {
    assert_eq!(negotiate(1, 1), Some(1));
    assert_eq!(negotiate(1, 2), Some(2));
    assert_eq!(negotiate(2, 9), Some(2));
    assert_eq!(negotiate(3, 9), None);
    assert_eq!(negotiate(0, 0), None);
    assert_eq!(negotiate(2, 1), None);
}
