"""ros2 launch edge_resnet pipeline.launch.py: camera, preprocess, inference, actuator, and monitors of heat and latency.

Without an argument it plays the sample frames through the default model into the simulated actuator.
``--show-args`` lists the arguments; each is a ``LaunchArgument`` of ``edge_resnet.deployment``.
"""

import shutil
import sys
from pathlib import Path

from launch_ros.actions import Node

from edge_resnet.deployment import ARGUMENTS, RESPAWN_DELAY_S, Deployment, RespawnLimit, plan, transport_environment
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
    pushed = context.launch_configurations.get('ros_namespace', '')
    deployment = plan({argument.name: LaunchConfiguration(argument.name).perform(context) for argument in ARGUMENTS}, pushed)
    return [
        Node(package='edge_resnet', executable=executable, exec_name=executable, arguments=arguments, namespace=deployment.namespace,
             additional_env=transport_environment(context.environment), prefix=prefix(context), output='both', emulate_tty=True,
             respawn=deployment.respawn, respawn_delay=RESPAWN_DELAY_S, on_exit=after(executable, deployment, pushed))
        for executable, arguments in deployment.executables.items()
    ]


def prefix(context: LaunchContext) -> str | None:
    """The kernel ends the nodes, safely, when ros2 launch itself is killed; it would leave them running. Not under the user's own prefix."""
    if context.launch_configurations.get('launch-prefix') or shutil.which('setpriv') is None:
        return None
    return 'setpriv --pdeathsig TERM'


def after(executable: str, deployment: Deployment, pushed: str):
    """What to do when a process of ``executable`` has ended: drive off what it switched; give it up when it keeps ending."""
    limit, off = RespawnLimit(), deployment.off_arguments(executable)
    namespace = deployment.namespace if deployment.namespace.startswith('/') else f'{pushed}/{deployment.namespace}'.rstrip('/')

    def on_exit(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        if context.is_shutdown:
            return []
        actions: list[LaunchDescriptionEntity] = []
        if off is not None:
            actions.append(Node(package='edge_resnet', executable='actuator_off', exec_name='actuator_off', arguments=off,
                                namespace=namespace, output='both'))
        if deployment.respawn and not limit.allows(event.returncode):
            get_logger(executable).error(f'{limit}: not started again')
            actions.append(EmitEvent(event=ShutdownProcess(process_matcher=matches_action(event.action))))
        return actions

    return on_exit


def generate_launch_description() -> LaunchDescription:
    declared = [DeclareLaunchArgument(argument.name, default_value=argument.default, description=argument.description,
                                      choices=list(argument.choices) or None) for argument in ARGUMENTS]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
