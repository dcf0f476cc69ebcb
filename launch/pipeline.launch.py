"""ros2 launch edge_resnet pipeline.launch.py: camera, preprocess, inference, actuator, and monitors of heat and latency.

Without an argument it plays the sample frames through the default model into the simulated actuator.
``--show-args`` lists the arguments; each is a ``LaunchArgument`` of ``edge_resnet.deployment``.
"""

import shutil
import sys
from pathlib import Path

from launch_ros.actions import Node

from edge_resnet.deployment import ARGUMENTS, RESPAWN_DELAY_S, RespawnLimit, plan, transport_environment
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction
from launch.events import matches_action
from launch.events.process import ProcessExited, ShutdownProcess
from launch.logging import get_logger
from launch.substitutions import LaunchConfiguration


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The nodes, once the arguments have their values."""
    if any(Path(text).name == Path(__file__).name for text in sys.argv):  # not one that includes this, whose arguments are its own
        known = [argument.name for argument in ARGUMENTS]
        for name in (text.split(':=', 1)[0] for text in context.argv if ':=' in text):
            if name not in (*known, 'launch-prefix', 'launch-prefix-filter'):  # the options of ros2 launch come as arguments
                get_logger('edge_resnet').warning(f'unknown argument {name}: ignored; known are {", ".join(known)}')
    deployment = plan({argument.name: LaunchConfiguration(argument.name).perform(context) for argument in ARGUMENTS},
                      context.launch_configurations.get('ros_namespace', ''))
    return [
        Node(package='edge_resnet', executable=executable, exec_name=executable, arguments=arguments, namespace=deployment.namespace,
             additional_env=transport_environment(context.environment), prefix=prefix(context), output='both', emulate_tty=True,
             respawn=deployment.respawn, respawn_delay=RESPAWN_DELAY_S, on_exit=watch(executable) if deployment.respawn else None)
        for executable, arguments in deployment.executables.items()
    ]


def prefix(context: LaunchContext) -> str | None:
    """The kernel ends the nodes, safely, when ros2 launch itself is killed; it would leave them running. Not under the user's own prefix."""
    if context.launch_configurations.get('launch-prefix') or shutil.which('setpriv') is None:
        return None
    return 'setpriv --pdeathsig TERM'


def watch(executable: str):
    """What to do when a process of ``executable`` has ended: nothing, so that it starts again, or give it up."""
    limit = RespawnLimit()

    def on_exit(event: ProcessExited, context: LaunchContext) -> EmitEvent | None:
        if context.is_shutdown or limit.allows(event.returncode):
            return None
        get_logger(executable).error(f'{limit}: not started again')
        return EmitEvent(event=ShutdownProcess(process_matcher=matches_action(event.action)))

    return on_exit


def generate_launch_description() -> LaunchDescription:
    declared = [DeclareLaunchArgument(argument.name, default_value=argument.default, description=argument.description,
                                      choices=list(argument.choices) or None) for argument in ARGUMENTS]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
