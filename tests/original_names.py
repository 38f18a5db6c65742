# SPDX-License-Identifier: Apache-2.0
"""The public names of quark0/darts (cnn), darts-pt, PC-DARTS and darts-pt's nasbench201, with the
parameters of each; a name without a colon is a value, ``_`` a parameter that is only passed by
position. What is left out on purpose stands in docs/compat.md.
"""

from __future__ import annotations

from collections.abc import Iterator

_OPERATIONS = """
OPS
ReLUConvBN: C_in C_out kernel_size stride padding affine
DilConv: C_in C_out kernel_size stride padding dilation affine
SepConv: C_in C_out kernel_size stride padding affine
Identity:
Zero: stride
FactorizedReduce: C_in C_out affine
"""
_UTILS = """
AvgrageMeter:
AvgrageMeter.reset: self
AvgrageMeter.update: self val n
accuracy: output target topk
_data_transforms_cifar10: args
count_parameters_in_MB: model
save: model model_path
load: model model_path
drop_path: x _
create_exp_dir: path scripts_to_save
"""
_DERIVED_CELL = """
Cell: genotype C_prev_prev C_prev C reduction reduction_prev
Cell.forward: self s0 s1 drop_prob
"""
_DERIVED = f"""{_DERIVED_CELL}
AuxiliaryHeadCIFAR: C num_classes
AuxiliaryHeadImageNet: C num_classes
NetworkCIFAR: C num_classes layers auxiliary genotype
NetworkCIFAR.forward: self _
NetworkImageNet: C num_classes layers auxiliary genotype
"""
_SEARCH = """
MixedOp: C stride
MixedOp.forward: self x weights
Cell: steps multiplier C_prev_prev C_prev C reduction reduction_prev
Network: C num_classes layers criterion steps multiplier stem_multiplier
Network.new: self
Network.forward: self _
Network._loss: self _ _
Network._initialize_alphas: self
Network.arch_parameters: self
Network.genotype: self
"""
_PARTIAL = f"""{_SEARCH}
channel_shuffle: x groups
Cell.forward: self s0 s1 weights weights2
"""
_GENOTYPES = "Genotype PRIMITIVES NASNet AmoebaNet DARTS_V1 DARTS_V2"
_BATCHES = "input_train target_train input_valid target_valid"
_ARCHITECT = f"""
Architect: model args
Architect.step: self {_BATCHES} eta network_optimizer unrolled
"""
_PT_ARCHITECT = f"""
Architect: model args
Architect.reset_arch_parameters: self
Architect.step: self {_BATCHES} args kwargs
"""
_PT_NETWORK = """C num_classes layers criterion primitives args steps multiplier stem_multiplier
    drop_path_prob""".replace("\n", " ")
_SDARTS = """
{0}.softmax_arch_parameters: self
{0}.restore_arch_parameters: self
{0}.get_softmax: self
"""
_PT_UTILS = f"""{_UTILS}
Cutout: length prob
_data_transforms_svhn: args
_data_transforms_cifar100: args
count_parameters_in_Compact: model
save_checkpoint: state is_best save per_epoch prefix
load_checkpoint: model optimizer save epoch
pick_gpu_lowest_memory:
EVLocalAvg: window ev_freq total_epochs
EVLocalAvg.reset: self
EVLocalAvg.update: self epoch ev genotype numparam
EVLocalAvg.early_stop: self epoch factor es_start_epoch delta criteria
gen_comb: eids
"""
_QUEUES = "train_queue valid_queue model architect"
_CONVOLUTION = "C_in C_out kernel_size stride padding dilation affine track_running_stats"
_TINY = "C N max_nodes num_classes criterion search_space args affine track_running_stats"
_CELL = "C_in C_out stride max_nodes op_names affine track_running_stats"

TABLE: dict[str, str] = {
    "darts.architect": _ARCHITECT,
    "darts.genotypes": f"{_GENOTYPES} DARTS",
    "darts.model": _DERIVED,
    "darts.model_search": f"{_SEARCH}\nCell.forward: self s0 s1 weights",
    "darts.operations": _OPERATIONS,
    "darts.utils": f"{_UTILS}\nCutout: length\nsave_checkpoint: state is_best save",
    "darts.visualize": "plot: genotype filename",
    "pc_darts.architect": _ARCHITECT,
    "pc_darts.genotypes": f"{_GENOTYPES} PC_DARTS_cifar PC_DARTS_image PCDARTS",
    "pc_darts.model": _DERIVED,
    "pc_darts.model_search": _PARTIAL,
    "pc_darts.model_search_imagenet": _PARTIAL,
    "pc_darts.operations": _OPERATIONS,
    "pc_darts.utils": f"{_UTILS}\nCutout: length\nsave_checkpoint: state is_best save",
    "pc_darts.visualize": "plot: genotype filename",
    "darts_pt.architect": _PT_ARCHITECT,
    "darts_pt.genotypes": "Genotype PRIMITIVES",
    "darts_pt.model": f"""{_DERIVED_CELL}
        AuxiliaryHead: C num_classes
        Network: C num_classes layers auxiliary genotype""",
    "darts_pt.model_imagenet": f"""{_DERIVED_CELL}
        AuxiliaryHeadImageNet: C num_classes
        NetworkImageNet: C num_classes layers auxiliary genotype""",
    "darts_pt.model_search": f"""
        MixedOp: C stride PRIMITIVES
        MixedOp.forward: self x weights
        Cell: steps multiplier C_prev_prev C_prev C reduction reduction_prev
        Cell.forward: self s0 s1 weights drop_prob
        Network: {_PT_NETWORK}
        Network.reset_optimizer: self lr momentum weight_decay
        Network._loss: self input target return_logits
        Network.forward: self _
        Network.step: self input target args shared
        Network.set_arch_parameters: self new_alphas
        Network.get_softmax: self
        Network.printing: self logging option
        Network.arch_parameters: self
        Network.get_weights: self
        Network.new: self
        Network.clip: self
        Network.genotype: self""",
    "darts_pt.model_search_darts_proj": f"""
        DartsNetworkProj: {_PT_NETWORK}
        DartsNetworkProj.project_op: self eid opid cell_type
        DartsNetworkProj.project_edge: self nid eids cell_type
        DartsNetworkProj.get_projected_weights: self cell_type
        DartsNetworkProj.forward: self input weights_dict
        DartsNetworkProj.printing: self logging option
        DartsNetworkProj.genotype: self
        DartsNetworkProj.get_state_dict: self epoch architect scheduler
        DartsNetworkProj.set_state_dict: self architect scheduler checkpoint""",
    "darts_pt.model_search_sdarts": f"""
        SDartsNetwork: {_PT_NETWORK}
        {_SDARTS.format("SDartsNetwork")}""",
    "darts_pt.model_search_sdarts_proj": f"""
        SDartsNetworkProj: {_PT_NETWORK}
        {_SDARTS.format("SDartsNetworkProj")}""",
    "darts_pt.operations": f"""{_OPERATIONS}
        NoiseOp: stride mean std
        DilConvSkip: C_in C_out kernel_size stride padding dilation affine
        SepConvSkip: C_in C_out kernel_size stride padding affine""",
    "darts_pt.perturb": """
        Linf_PGD_alpha: model X y epsilon steps random_start
        Random_alpha: model X y epsilon""",
    "darts_pt.projection": f"""
        project_op: model proj_queue args infer cell_type selected_eid
        project_edge: model proj_queue args infer cell_type
        pt_project: {_QUEUES} optimizer epoch args infer perturb_alpha epsilon_alpha""",
    "darts_pt.spaces": """spaces_dict PRIMITIVES primitives_1 primitives_2 primitives_3 primitives_4
        primitives_5""",
    "darts_pt.train_search": "infer: valid_queue model log _eval weights_dict",
    "darts_pt.utils": _PT_UTILS,
    "darts_pt.visualize": "plot: genotype filename mode",
    "nasbench201.architect_ig": _PT_ARCHITECT,
    "nasbench201.cell_operations": f"""
        OPS SearchSpaceNames CONNECT_NAS_BENCHMARK NAS_BENCH_201 NAS_BENCH_201_SIMPLE
        NAS_BENCH_201_S2 NAS_BENCH_201_S4 NAS_BENCH_201_S10 DARTS_SPACE
        NoiseOp: stride mean std
        ReLUConvBN: {_CONVOLUTION}
        ReLUConvBNSkip: {_CONVOLUTION}
        SepConv: {_CONVOLUTION}
        DualSepConv: {_CONVOLUTION}
        ResNetBasicblock: inplanes planes stride affine
        POOLING: C_in C_out stride mode affine track_running_stats
        Identity:
        Zero: C_in C_out stride
        FactorizedReduce: C_in C_out stride affine track_running_stats""",
    "nasbench201.genotypes": """
        get_combination: space num
        Structure: genotype
        Structure.tolist: self remove_str
        Structure.node: self index
        Structure.tostr: self
        Structure.check_valid: self
        Structure.to_unique_str: self consider_zero
        Structure.check_valid_op: self op_names
        Structure.str2structure: xstr
        Structure.str2fullstructure: xstr default_name
        Structure.gen_all: search_space num return_ori
        ResNet_CODE AllConv3x3_CODE AllFull_CODE AllConv1x1_CODE AllIdentity_CODE architectures""",
    "nasbench201.projection": f"""
        pt_project: {_QUEUES} criterion optimizer epoch args infer query""",
    "nasbench201.search_cells": f"""
        channel_shuffle: x groups
        NAS201SearchCell: {_CELL}
        NAS201SearchCell.forward: self _ _
        NAS201SearchCell.forward_gdas: self inputs hardwts index
        NAS201SearchCell.forward_joint: self inputs weightss
        NAS201SearchCell.forward_urs: self inputs
        NAS201SearchCell.forward_select: self inputs weightss
        NAS201SearchCell.forward_dynamic: self inputs structure
        NAS201SearchCell_PartialChannel: {_CELL} k
        NAS201SearchCell_PartialChannel.MixedOp: self x ops weights
        NAS201SearchCell_PartialChannel.forward: self inputs weightss""",
    "nasbench201.search_model": f"""
        TinyNetwork: {_TINY}
        TinyNetwork.entropy_y_x: self p_logit
        TinyNetwork._loss: self input target return_logits
        TinyNetwork.get_weights: self
        TinyNetwork.arch_parameters: self
        TinyNetwork.get_theta: self
        TinyNetwork.get_message: self
        TinyNetwork.genotype: self
        TinyNetwork.forward: self inputs weights
        TinyNetwork.new: self
        TinyNetwork.step: self input target args shared return_grad
        TinyNetwork.printing: self logging
        TinyNetwork.set_arch_parameters: self new_alphas
        TinyNetwork.save_arch_parameters: self
        TinyNetwork.restore_arch_parameters: self
        TinyNetwork.reset_optimizer: self lr momentum weight_decay""",
    "nasbench201.search_model_darts": f"TinyNetworkDarts: {_TINY}",
    "nasbench201.search_model_darts_proj": f"""
        TinyNetworkDartsProj: {_TINY}
        TinyNetworkDartsProj.project_op: self eid opid
        TinyNetworkDartsProj.get_projected_weights: self
        TinyNetworkDartsProj.forward: self inputs weights
        TinyNetworkDartsProj.get_theta: self""",
    "nasbench201.utils": _PT_UTILS,
}

_OF_A_NETWORK = "stem cells global_pooling classifier _C _num_classes _layers _criterion _steps"
_OF_A_SEARCH = f"{_OF_A_NETWORK} _multiplier alphas_normal alphas_reduce _arch_parameters"
_OF_PT = f"{_OF_A_SEARCH} optimizer _args drop_path_prob op_names PRIMITIVES num_edges num_ops"
_OF_PROJ = "nid2eids nid2selected_eids candidate_flags candidate_flags_edge proj_weights"
_OF_TINY = """stem cells lastact global_pooling classifier _C _layerN max_nodes _num_classes
    _criterion _args _affine _track_running_stats num_edge num_op op_names _Layer edge2index
    _arch_parameters optimizer"""

# What an instance has, by how the test builds it.
ATTRIBUTES = {
    "darts": _OF_A_SEARCH,
    "darts cell": "reduction preprocess0 preprocess1 _steps _multiplier _ops _bns",
    "darts architect": "network_momentum network_weight_decay model optimizer",
    "derived": """_layers _auxiliary stem cells auxiliary_head global_pooling classifier
        drop_path_prob""",
    "derived cell": "preprocess0 preprocess1 _steps _concat multiplier _ops _indices",
    "pc_darts": f"{_OF_A_SEARCH} betas_normal betas_reduce",
    "pc_darts edge": "_ops mp k",
    "pc_darts imagenet": f"stem0 stem1 {_OF_A_SEARCH.removeprefix('stem')} betas_normal",
    "darts_pt": _OF_PT,
    "darts_pt proj": f"{_OF_PT} {_OF_PROJ}",
    "darts_pt sdarts proj": f"{_OF_PT} {_OF_PROJ} softmaxed",
    "darts_pt architect": "network_momentum network_weight_decay model optimizer method",
    "nasbench201": _OF_TINY,
    "nasbench201 proj": f"{_OF_TINY} candidate_flags proj_weights",
    "nasbench201 cell": "op_names edges max_nodes in_dim out_dim edge_keys edge2index num_edges",
    "nasbench201 block": "conv_a conv_b downsample in_dim out_dim stride num_conv",
    "eigenvalues": """window ev_freq epochs stop_search stop_epoch stop_genotype stop_numparam ev
        ev_local_avg genotypes numparams la_epochs la_start_idx la_end_idx""",
}


def entries(text: str) -> Iterator[tuple[str, list[str] | None]]:
    """(name, its parameters or None for a value) of every name of a module."""
    for line in text.splitlines():
        name, colon, parameters = line.strip().partition(":")
        if colon:
            yield name, parameters.split()
        else:
            yield from ((value, None) for value in name.split())
