"""app.grpc.protocol against the code that Triton's clients are generated from."""

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from tritonclient.grpc import model_config_pb2, service_pb2

from app.grpc.protocol import FILE, METHODS, SERVICE, message_class

ALL = [*FILE.message_types_by_name.values()]
ALL += [nested for message in ALL for nested in message.nested_types]


def of_triton(name: str) -> Descriptor:
    file = (
        model_config_pb2
        if name.startswith(("inference.ModelInput", "inference.ModelOutput"))
        else service_pb2
    )
    if name == "inference.ModelConfig":
        file = model_config_pb2
    found: Descriptor = file.DESCRIPTOR.pool.FindMessageTypeByName(name)
    return found


def kind(field: FieldDescriptor) -> tuple[object, ...]:
    other = field.message_type or field.enum_type
    alternatives = field.containing_oneof
    return (
        field.number,
        field.type,
        field.is_repeated,
        other and other.full_name,
        alternatives and alternatives.name,
    )


@pytest.mark.parametrize("message", ALL, ids=lambda message: message.full_name)
def test_every_field_is_tritons(message: Descriptor) -> None:
    theirs = of_triton(message.full_name).fields_by_name
    assert {field.name: kind(field) for field in message.fields} == {
        field.name: kind(theirs[field.name]) for field in message.fields
    }


def test_only_of_the_configuration_fields_are_left_out() -> None:
    for message in ALL:
        if message.name not in ("ModelConfig", "ModelInput", "ModelOutput"):
            assert set(message.fields_by_name) == set(of_triton(message.full_name).fields_by_name), (
                message.name
            )


def test_data_types_have_tritons_numbers() -> None:
    ours, theirs = FILE.enum_types_by_name["DataType"], model_config_pb2.DataType
    assert {value.name: value.number for value in ours.values} == dict(theirs.items())


def test_calls_take_and_give_what_tritons_do() -> None:
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert theirs.full_name == SERVICE
    for name in METHODS:
        ours = FILE.services_by_name["GRPCInferenceService"].methods_by_name[name]
        call = theirs.methods_by_name[name]
        assert (ours.input_type.full_name, ours.output_type.full_name) == (
            call.input_type.full_name,
            call.output_type.full_name,
        )
        assert not call.client_streaming
        assert not call.server_streaming


def test_both_live_in_one_process() -> None:
    theirs = service_pb2.ModelInferRequest(model_name="toy", raw_input_contents=[b"image"])
    theirs.parameters["keep_ratio"].double_param = 0.5
    ours = message_class("ModelInferRequest").FromString(theirs.SerializeToString())
    assert ours.parameters["keep_ratio"].double_param == 0.5
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)
